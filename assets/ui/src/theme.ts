// Dark or light: what the system prefers, until somebody chooses.

import { useCallback, useEffect, useState } from 'preact/hooks';

export type Theme = 'dark' | 'light';
const KEY = 'sluice-theme';
const LIGHT = '(prefers-color-scheme: light)';

function chosen(): Theme | null {
  let kept: string | null = null;
  try { kept = localStorage.getItem(KEY); } catch { /* storage may be off */ }
  return kept === 'dark' || kept === 'light' ? kept : null;
}

function current(): Theme {
  return chosen() ?? (matchMedia(LIGHT).matches ? 'light' : 'dark');
}

/** The theme, and how to choose the other one. A choice is kept at once: whoever reloads the page then finds it. */
export function useTheme(): [Theme, () => void] {
  const [theme, set] = useState<Theme>(() => {
    const theme = current();
    document.documentElement.dataset.theme = theme;
    return theme;
  });
  const show = useCallback((next: Theme) => {
    document.documentElement.dataset.theme = next;
    set(next);
  }, []);
  useEffect(() => {
    const system = matchMedia(LIGHT);
    const follow = () => show(current());
    system.addEventListener('change', follow);
    return () => system.removeEventListener('change', follow);
  }, []);
  const toggle = useCallback(() => {
    const next = document.documentElement.dataset.theme === 'dark' ? 'light' : 'dark';
    try { localStorage.setItem(KEY, next); } catch { /* storage may be off */ }
    show(next);
  }, []);
  return [theme, toggle];
}
