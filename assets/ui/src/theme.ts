// Dark or light: what the system prefers, until somebody chooses.

import { useEffect, useState } from 'preact/hooks';

export type Theme = 'dark' | 'light';
const KEY = 'sluice-theme';

function initial(): Theme {
  let kept: string | null = null;
  try { kept = localStorage.getItem(KEY); } catch { /* storage may be off */ }
  if (kept === 'dark' || kept === 'light') return kept;
  return matchMedia('(prefers-color-scheme: light)').matches ? 'light' : 'dark';
}

export function useTheme(): [Theme, (next: Theme | ((now: Theme) => Theme)) => void] {
  const [theme, set] = useState<Theme>(() => {
    const theme = initial();
    document.documentElement.dataset.theme = theme;
    return theme;
  });
  useEffect(() => {
    document.documentElement.dataset.theme = theme;
    try { localStorage.setItem(KEY, theme); } catch { /* storage may be off */ }
  }, [theme]);
  return [theme, set];
}
