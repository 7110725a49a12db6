// The map's canvases and what mouse, fingers and keys do to them.

import { useEffect, useRef } from 'preact/hooks';
import type { Selection } from './details';
import { type MapModel, title } from './model';
import { type Filter, type Hit, Scene, summary } from './scene';
import type { Theme } from './theme';

interface Props { model: MapModel; filter: Filter; selection: Selection; select(selection: Selection): void; theme: Theme; beat: number }

export function MapView({ model, filter, selection, select, theme, beat }: Props) {
  const frame = useRef<HTMLDivElement>(null);
  const lower = useRef<HTMLCanvasElement>(null);
  const upper = useRef<HTMLCanvasElement>(null);
  const scene = useRef<Scene | null>(null);
  const say = useRef<HTMLParagraphElement>(null);

  useEffect(() => {
    const s = new Scene(model, lower.current!, upper.current!, filter, () => performance.now());
    scene.current = s;
    (window as unknown as { sluiceScene: Scene }).sluiceScene = s;
    const observer = new ResizeObserver(([entry]) => s.resize(entry!.contentRect.width, entry!.contentRect.height));
    observer.observe(frame.current!);
    const stop = pointers(upper.current!, s, (hit) => select(selectionOf(hit)));
    return () => { stop(); observer.disconnect(); s.stop(); scene.current = null; };
  }, []);
  useEffect(() => { scene.current?.setFilter(filter); }, [filter]);
  useEffect(() => { requestAnimationFrame(() => scene.current?.recolor()); }, [theme]);
  useEffect(() => { scene.current?.beat(); }, [beat]);
  useEffect(() => {
    const s = scene.current;
    if (!s) return;
    s.selected = selection?.kind === 'node' ? { node: selection.node } : selection?.kind === 'pair' ? { pair: selection.pair } : null;
    s.changed();
  }, [selection]);

  const onKey = (event: KeyboardEvent) => {
    const s = scene.current;
    if (!s || event.ctrlKey || event.metaKey || event.altKey) return;
    const arrows: Record<string, [number, number]> = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    const arrow = arrows[event.key];
    const at = s.hovered && 'node' in s.hovered ? s.hovered.node : selection?.kind === 'node' ? selection.node : null;
    if (arrow) {
      const node = s.next(at, ...arrow);
      if (node) {
        s.hovered = { node };
        s.reveal(node);
        if (say.current) say.current.textContent = `${title(node)}, ${node.pairs.length} connections`;
        if (selection?.kind === 'node') select({ kind: 'node', node });
      }
    } else if (event.key === 'Enter' && at) select({ kind: 'node', node: at });
    else if (event.key === '+' || event.key === '=') s.zoom(1.25);
    else if (event.key === '-') s.zoom(0.8);
    else if (event.key === '0') s.fit();
    else return;
    event.preventDefault();
    s.changed();
  };
  const empty = model.cursor !== '' && model.nodes.length === 0;
  return (
    <div class="map" ref={frame}>
      <canvas ref={lower} class="lower" aria-hidden="true" />
      <canvas ref={upper} class="upper" tabIndex={0} role="application" aria-label="Service map: arrow keys go from node to node, Enter shows details" onKeyDown={onKey}
        onBlur={() => { if (scene.current) { scene.current.hovered = null; scene.current.changed(); } }} />
      <p class="sr" aria-live="polite" ref={say} />
      {empty && <p class="empty">No pods and no flows yet. They appear here as they come.</p>}
      <div class="zoom" role="group" aria-label="Zoom">
        <button type="button" aria-label="Nearer" onClick={() => scene.current?.zoom(1.3)}>+</button>
        <button type="button" aria-label="Farther" onClick={() => scene.current?.zoom(0.77)}>−</button>
        <button type="button" aria-label="Everything" title="Everything (0)" onClick={() => scene.current?.fit()}>⤢</button>
      </div>
      <p class="legend" aria-hidden="true"><i class="allow" /> allowed <i class="deny" /> denied</p>
    </div>
  );
}

function selectionOf(hit: Hit): Selection {
  if (!hit) return null;
  return 'node' in hit ? { kind: 'node', node: hit.node } : { kind: 'pair', pair: hit.pair };
}

/** Drag moves, wheel and two fingers zoom, a click or tap selects. */
function pointers(canvas: HTMLCanvasElement, scene: Scene, choose: (hit: Hit) => void): () => void {
  const down = new Map<number, { x: number; y: number }>();
  let moved = 0;
  let hover = 0;
  const point = (e: PointerEvent | WheelEvent) => { const r = canvas.getBoundingClientRect(); return { x: e.clientX - r.left, y: e.clientY - r.top }; };
  const abort = new AbortController();
  const on = <K extends keyof HTMLElementEventMap>(name: K, f: (e: HTMLElementEventMap[K]) => void, passive = true) =>
    canvas.addEventListener(name, f, { signal: abort.signal, passive });
  on('pointerdown', (e) => { canvas.setPointerCapture(e.pointerId); down.set(e.pointerId, point(e)); if (down.size === 1) moved = 0; });
  on('pointermove', (e) => {
    const p = point(e);
    const old = down.get(e.pointerId);
    if (!old) {
      if (e.pointerType === 'mouse') {
        cancelAnimationFrame(hover);
        hover = requestAnimationFrame(() => {
          const hit = scene.at(p.x, p.y);
          const same = JSON.stringify(keyOf(hit)) === JSON.stringify(keyOf(scene.hovered));
          if (!same) { scene.hovered = hit; scene.changed(); canvas.title = hit ? ('pair' in hit ? summary(hit.pair) : title(hit.node)) : ''; }
          canvas.classList.toggle('pointing', hit !== null);
        });
      }
      return;
    }
    const [dx, dy] = [p.x - old.x, p.y - old.y];
    moved += Math.abs(dx) + Math.abs(dy);
    if (down.size === 1 && moved > 5) scene.pan(dx, dy);
    if (down.size === 2) {
      const other = [...down.entries()].find(([id]) => id !== e.pointerId)![1];
      const before = Math.hypot(old.x - other.x, old.y - other.y);
      const after = Math.hypot(p.x - other.x, p.y - other.y);
      if (before > 0) scene.zoom(after / before, (p.x + other.x) / 2, (p.y + other.y) / 2);
      scene.pan(dx / 2, dy / 2);
    }
    down.set(e.pointerId, p);
  });
  const up = (e: PointerEvent) => {
    const was = down.delete(e.pointerId);
    if (was && down.size === 0 && moved <= 5 && e.type === 'pointerup') { const p = point(e); choose(scene.at(p.x, p.y)); }
  };
  on('pointerup', up);
  on('pointercancel', up);
  on('pointerleave', () => { if (scene.hovered) { scene.hovered = null; scene.changed(); } });
  on('wheel', (e) => {
    e.preventDefault();
    const p = point(e);
    scene.zoom(Math.exp(-e.deltaY * (e.deltaMode === 1 ? 0.05 : 0.0016)), p.x, p.y);
  }, false);
  return () => abort.abort();
}

function keyOf(hit: Hit): unknown { return !hit ? null : 'node' in hit ? hit.node.id : hit.pair.key; }
