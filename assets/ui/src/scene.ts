// The map on two canvases: one that is drawn when something changes (boxes, cards, edges), and one above it for what
// moves (dots along edges that carry traffic now), cleared where dots were. Nothing here knows the DOM around it.

import { type Box, NARROW_BELOW, layout } from './layout';
import { type MapModel, type MapNode, type Pair, portName, title } from './model';
import { count, short } from './text';

export interface Filter { verdict: 'all' | 'denied' | 'allowed'; namespace: string; node: string; text: string; quiet: boolean }
export type Hit = { node: MapNode } | { pair: Pair } | null;

interface Colors { bg: string; surface: string; raised: string; border: string; text: string; muted: string; accent: string; allow: string; deny: string; box: string }

const SAMPLES = 20;
const FONT = '500 14px system-ui, sans-serif';
const SMALL = '12px system-ui, sans-serif';
/** Dots at once. */
const MAX_DOTS = 220;
const STALE = 120_000;

export class Scene {
  boxes: Box[] = [];
  private colors!: Colors;
  private still: CanvasRenderingContext2D;
  private moving: CanvasRenderingContext2D;
  private width = 0;
  private height = 0;
  private ratio = 1;
  private scale = 1;
  private offX = 0;
  private offY = 0;
  private drawnView: [number, number, number] | null = null;
  private shown = new Set<MapNode>();
  private pairs: Pair[] = [];
  private seen = '';
  private dirty = true;
  private moves = false;
  private userView = false;
  private quick = 0;
  private dots: [number, number][] = [];
  private frame = 0;
  private laidOut = 0;
  private curves = 0;
  private now: () => number;
  selected: Hit = null;
  hovered: Hit = null;
  /** Reduced motion: no dots. */
  calm = matchMedia('(prefers-reduced-motion: reduce)');
  /** Frames and the time that they took, for measurements. */
  frames = 0;
  busy = 0;
  private marked = false;
  private drawnAt = 0;

  constructor(readonly model: MapModel, readonly lower: HTMLCanvasElement, readonly upper: HTMLCanvasElement, public filter: Filter, now: () => number) {
    this.still = lower.getContext('2d')!;
    this.moving = upper.getContext('2d')!;
    this.now = now;
    this.recolor();
    const tick = (t: number) => {
      const begin = performance.now();
      this.step(t);
      this.frames++;
      this.busy += performance.now() - begin;
      this.frame = requestAnimationFrame(tick);
    };
    this.frame = requestAnimationFrame(tick);
  }

  stop(): void { cancelAnimationFrame(this.frame); }

  recolor(): void {
    const style = getComputedStyle(document.documentElement);
    const v = (name: string) => style.getPropertyValue(`--${name}`).trim();
    this.colors = { bg: v('bg'), surface: v('surface'), raised: v('raised'), border: v('border'), text: v('text'), muted: v('muted'), accent: v('accent'), allow: v('allow'), deny: v('deny'), box: v('box') };
    this.dirty = true;
  }

  resize(width: number, height: number): void {
    this.ratio = Math.min(devicePixelRatio || 1, 2);
    this.width = width; this.height = height;
    for (const canvas of [this.lower, this.upper]) {
      canvas.width = Math.round(width * this.ratio);
      canvas.height = Math.round(height * this.ratio);
    }
    this.seen = '';
    this.dirty = true;
    if (!this.userView) this.relayout(true);
  }

  setFilter(filter: Filter): void { this.filter = filter; this.seen = ''; this.userView = false; this.dirty = true; }
  changed(): void { this.dirty = true; }

  /** News came: widths and ages are drawn anew now and then; what changes its look is drawn by `step`. */
  beat(): void { if (performance.now() - this.drawnAt > 1000) this.dirty = true; }

  // --- what is shown ---

  private passes(pair: Pair): boolean {
    if (this.filter.verdict === 'denied' && pair.dropped === 0) return false;
    if (this.filter.verdict === 'allowed' && pair.passed === 0) return false;
    return pair.from !== pair.to;
  }

  private select(): void {
    const f = this.filter;
    const text = f.text.trim().toLowerCase();
    const plainWords = text.split(/\s+/).filter((w) => w && !/[=:]/.test(w.replace(/^--/, '=')));
    const named = (node: MapNode) => plainWords.length === 0 || plainWords.every((w) => title(node).toLowerCase().includes(w));
    const core = (node: MapNode) => (f.namespace === '' || node.namespace === f.namespace) && named(node);
    this.shown.clear();
    this.pairs = [];
    for (const pair of this.model.pairs.values()) {
      if (!this.passes(pair) || !(core(pair.from) || core(pair.to))) continue;
      this.pairs.push(pair);
      this.shown.add(pair.from).add(pair.to);
    }
    if (f.verdict === 'all' && f.quiet) for (const node of this.model.nodes) if (node && core(node)) this.shown.add(node);
  }

  private relayout(at_once: boolean): void {
    this.select();
    this.boxes = layout(this.model, (node) => this.shown.has(node), this.width / Math.max(1, this.height));
    for (const node of this.shown) {
      if (!node.placed || at_once) { node.x = node.tx; node.y = node.ty; node.placed = true; }
    }
    this.curves++;
    if (!this.userView) this.fit();
    this.moves = true;
    this.dirty = true;
  }

  /** Everything on the screen. */
  fit(): void {
    this.userView = false;
    if (this.boxes.length === 0 || this.width === 0) return;
    const x0 = Math.min(...this.boxes.map((b) => b.x)); const x1 = Math.max(...this.boxes.map((b) => b.x + b.w));
    const y0 = Math.min(...this.boxes.map((b) => b.y)); const y1 = Math.max(...this.boxes.map((b) => b.y + b.h));
    const margin = this.width < 600 ? 12 : 36;
    const wide = (this.width - 2 * margin) / (x1 - x0);
    const high = (this.height - 2 * margin - 20) / (y1 - y0);
    // A phone shows the upper part so large that it can be read; the rest is a swipe away.
    const phone = this.width / this.height < NARROW_BELOW;
    this.scale = Math.min(phone ? Math.max(high, Math.min(wide, 1)) : Math.min(wide, high), 1.25);
    this.offX = (this.width - (x1 + x0) * this.scale) / 2;
    const top = phone ? 44 : margin;
    this.offY = (y1 - y0) * this.scale > this.height - top ? top - y0 * this.scale : (this.height - (y1 + y0) * this.scale) / 2;
    this.dirty = true;
  }

  zoom(factor: number, x = this.width / 2, y = this.height / 2): void {
    const next = Math.max(0.03, Math.min(3, this.scale * factor));
    this.offX = x - ((x - this.offX) * next) / this.scale;
    this.offY = y - ((y - this.offY) * next) / this.scale;
    this.scale = next;
    this.interact();
  }

  pan(dx: number, dy: number): void { this.offX += dx; this.offY += dy; this.interact(); }

  private interact(): void { this.userView = true; this.dirty = true; this.quick = performance.now(); }

  /** Brings a node into view. */
  reveal(node: MapNode): void {
    const [x, y] = this.toScreen(node.tx, node.ty);
    if (x > 60 && x < this.width - 60 && y > 40 && y < this.height - 40) return;
    this.offX += this.width / 2 - x;
    this.offY += this.height / 2 - y;
    this.interact();
  }

  toScreen(x: number, y: number): [number, number] { return [x * this.scale + this.offX, y * this.scale + this.offY]; }

  // --- finding ---

  private size(): [number, number] { return [172, this.shown.size > 150 ? 40 : 44]; }

  at(px: number, py: number): Hit {
    const x = (px - this.offX) / this.scale; const y = (py - this.offY) / this.scale;
    const [w, h] = this.size();
    for (const node of this.shown) if (Math.abs(node.x - x) <= w / 2 && Math.abs(node.y - y) <= h / 2) return { node };
    let best: Pair | null = null;
    let nearest = 9 / this.scale;
    for (const pair of this.pairs) {
      const c = this.curve(pair);
      for (let i = 0; i + 3 < c.length; i += 2) {
        const d = distance(x, y, c[i]!, c[i + 1]!, c[i + 2]!, c[i + 3]!);
        if (d < nearest) { nearest = d; best = pair; }
      }
    }
    return best ? { pair: best } : null;
  }

  /** The node next to this one in a direction, for arrow keys. */
  next(from: MapNode | null, dx: number, dy: number): MapNode | null {
    let best: MapNode | null = null;
    let least = Infinity;
    for (const node of this.shown) {
      if (node === from) continue;
      if (!from) { const d = node.tx + node.ty; if (d < least) { least = d; best = node; } continue; }
      const vx = node.tx - from.tx; const vy = node.ty - from.ty;
      const along = vx * dx + vy * dy;
      if (along <= 1) continue;
      const cost = along + 2.2 * Math.abs(vx * dy - vy * dx);
      if (cost < least) { least = cost; best = node; }
    }
    return best;
  }

  get nodesShown(): number { return this.shown.size; }

  // --- drawing ---

  private step(t: number): void {
    const shape = `${this.model.shape} ${this.filter.verdict} ${this.model.look}`;
    if (shape !== this.seen && this.width > 0 && (t - this.laidOut > 700 || this.seen === '')) {
      this.laidOut = t;
      const first = this.seen === '';
      this.seen = shape;
      this.relayout(first);
    }
    if (this.moves) {
      let far = 0;
      for (const node of this.shown) {
        const dx = node.tx - node.x; const dy = node.ty - node.y;
        if (dx === 0 && dy === 0) continue;
        far = Math.max(far, Math.abs(dx) + Math.abs(dy));
        node.x += dx * 0.22; node.y += dy * 0.22;
        if (Math.abs(dx) + Math.abs(dy) < 0.6) { node.x = node.tx; node.y = node.ty; }
      }
      if (far > 0) { this.curves++; this.dirty = true; } else this.moves = false;
    }
    if (this.dirty) {
      const large = this.pairs.length + this.shown.size > 900;
      const sliding = large && performance.now() - this.quick < 140 && this.drawnView;
      if (sliding) this.slide(); else { this.dirty = false; this.draw(); }
    }
    this.drawDots(t);
  }

  /** While a large map is moved: the picture that is there, moved. */
  private slide(): void {
    const [scale, x, y] = this.drawnView!;
    const f = this.scale / scale;
    this.lower.style.transform = `translate(${this.offX - x * f}px, ${this.offY - y * f}px) scale(${f})`;
  }

  private draw(): void {
    const c = this.still;
    this.lower.style.transform = '';
    this.drawnAt = performance.now();
    this.drawnView = [this.scale, this.offX, this.offY];
    c.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    c.clearRect(0, 0, this.width, this.height);
    c.setTransform(this.ratio * this.scale, 0, 0, this.ratio * this.scale, this.ratio * this.offX, this.ratio * this.offY);
    const near = this.scale > 0.42;
    for (const box of this.boxes) this.drawBox(box);
    const focus = this.focus();
    const now = this.now();
    const wall = Date.now();
    const draw = (pair: Pair, lit: boolean) => this.drawPair(pair, lit, focus !== null, now, wall);
    const lit: Pair[] = [];
    for (const pair of this.pairs) { if (focus && focus.pairs.has(pair)) lit.push(pair); else draw(pair, false); }
    for (const node of this.shown) if (!focus?.nodes.has(node)) this.drawNode(node, near, !focus);
    // What is looked at lies above what is not.
    lit.forEach((pair) => draw(pair, true));
    if (focus) for (const node of focus.nodes) if (this.shown.has(node)) this.drawNode(node, near, true);
    if (near) {
      const labelled = focus ? lit : this.pairs.length <= 40 && this.scale > 0.55 ? this.pairs : [];
      const taken: [number, number, number][] = [];
      for (const pair of labelled) this.drawLabel(pair, taken);
    }
    if (!this.marked && this.shown.size > 0) { this.marked = true; performance.mark('sluice-map'); }
  }

  private focus(): { nodes: Set<MapNode>; pairs: Set<Pair> } | null {
    const hit = this.hovered ?? this.selected;
    if (!hit) return null;
    if ('pair' in hit) return { nodes: new Set([hit.pair.from, hit.pair.to]), pairs: new Set([hit.pair]) };
    const pairs = new Set(hit.node.pairs.filter((p) => this.passes(p)));
    const nodes = new Set([hit.node]);
    for (const pair of pairs) nodes.add(pair.from).add(pair.to);
    return { nodes, pairs };
  }

  private drawBox(box: Box): void {
    const c = this.still;
    const k = this.colors;
    if (!this.visible(box.x, box.y, box.w, box.h)) return;
    const outside = box.key.startsWith('~');
    c.beginPath();
    c.roundRect(box.x, box.y, box.w, box.h, 14);
    c.fillStyle = k.box;
    c.fill();
    c.lineWidth = 1 / Math.min(1, this.scale);
    c.strokeStyle = k.border;
    c.setLineDash(outside ? [5, 5] : []);
    c.stroke();
    c.setLineDash([]);
    const px = Math.max(13, Math.min(11.5 / this.scale, box.w / 7, 90));
    c.font = `600 ${px}px system-ui, sans-serif`;
    c.fillStyle = k.muted;
    c.textBaseline = 'alphabetic';
    c.textAlign = 'left';
    const baseline = px > 22 ? box.y - px * 0.3 : box.y + 24;
    c.fillText(fitted(c, box.title, box.w - 60), box.x + (px > 22 ? 4 : 18), baseline);
    if (px <= 22 && box.count > 1) {
      c.font = SMALL;
      c.textAlign = 'right';
      c.fillText(String(box.count), box.x + box.w - 16, box.y + 24);
    }
  }

  private visible(x: number, y: number, w: number, h: number): boolean {
    const [ax, ay] = this.toScreen(x, y);
    return ax < this.width && ay < this.height && ax + w * this.scale > 0 && ay + h * this.scale > 0;
  }

  private drawNode(node: MapNode, near: boolean, lit: boolean): void {
    const [w, h] = this.size();
    const x = node.x - w / 2; const y = node.y - h / 2;
    if (!this.visible(x, y, w, h)) return;
    const c = this.still;
    const k = this.colors;
    const denied = node.pairs.some((p) => p.dropped > 0 && p.from !== p.to);
    const chosen = this.selected !== null && 'node' in this.selected && this.selected.node === node;
    c.globalAlpha = lit ? 1 : 0.28;
    c.beginPath();
    c.roundRect(x, y, w, h, 9);
    c.fillStyle = near ? k.surface : node.pairs.length ? k.raised : k.surface;
    c.fill();
    c.lineWidth = chosen ? 2.2 : 1;
    c.strokeStyle = chosen ? k.accent : k.border;
    c.stroke();
    if (near) {
      glyph(c, node, x + 19, y + h / 2, node.pairs.length ? k.accent : k.muted);
      c.font = FONT;
      c.textAlign = 'left';
      c.textBaseline = 'middle';
      c.fillStyle = node.pairs.length ? k.text : k.muted;
      const sub = subtitle(node);
      const room = w - 44 - (denied ? 12 : 0);
      c.fillText(fitted(c, node.name, room), x + 35, y + h / 2 - (sub ? 7 : 0));
      if (sub) {
        c.font = SMALL;
        c.fillStyle = k.muted;
        c.fillText(fitted(c, sub, room), x + 35, y + h / 2 + 9);
      }
    }
    if (denied) {
      c.beginPath();
      c.arc(x + w - 12, y + 12, near ? 3.5 : 7, 0, 7);
      c.fillStyle = k.deny;
      c.fill();
    }
    c.globalAlpha = 1;
  }

  private curve(pair: Pair): Float32Array {
    if (pair.curve && pair.stamp === this.curves) return pair.curve;
    pair.stamp = this.curves;
    return (pair.curve = curveBetween(pair.from, pair.to, this.size(), this.model.pairs.has(`${pair.to.id}>${pair.from.id}`)));
  }

  private drawPair(pair: Pair, lit: boolean, dim: boolean, now: number, wall: number): void {
    const c = this.still;
    const k = this.colors;
    const curve = this.curve(pair);
    const [x0, y0, x1, y1] = bounds(curve);
    if (!this.visible(x0, y0, x1 - x0 + 1, y1 - y0 + 1)) return;
    const showPassed = pair.passed > 0 && this.filter.verdict !== 'denied';
    const showDropped = pair.dropped > 0 && this.filter.verdict !== 'allowed';
    const stale = wall - pair.last > STALE;
    c.globalAlpha = lit ? 1 : dim ? 0.1 : stale ? 0.35 : 0.8;
    const thin = Math.max(1, 1.1 / this.scale);
    const width = (r: number) => Math.min(4, thin + Math.log2(1 + r) * 0.5);
    const last = curve.length;
    if (showPassed) {
      c.beginPath();
      path(c, curve, last, 0);
      c.strokeStyle = k.allow;
      c.lineWidth = width(pair.passing.now(now)) + (lit ? 0.8 : 0);
      c.stroke();
      arrow(c, curve, last, k.allow, this.scale);
    }
    if (showDropped) {
      const shift = showPassed ? 5 : 0;
      c.beginPath();
      path(c, curve, last, shift);
      c.strokeStyle = k.deny;
      c.lineWidth = width(pair.dropping.now(now)) + (lit ? 0.8 : 0.2);
      c.setLineDash([7, 5]);
      c.stroke();
      c.setLineDash([]);
      cross(c, curve, this.crossing(pair, curve), shift, k.deny, this.scale, k.bg);
    }
    c.globalAlpha = 1;
  }

  /** Where on a denied curve the cross is: as late as it is not behind a card. */
  private crossing(pair: Pair, curve: Float32Array): number {
    if (pair.cross !== undefined && pair.crossStamp === this.curves) return pair.cross;
    pair.crossStamp = this.curves;
    const [w, h] = this.size();
    const last = Math.floor((SAMPLES - 1) * 0.78);
    const covered = (i: number) => {
      for (const node of this.shown) {
        if (Math.abs(node.x - curve[i * 2]!) < w / 2 + 12 && Math.abs(node.y - curve[i * 2 + 1]!) < h / 2 + 12) return true;
      }
      return false;
    };
    let at = last;
    // Thousands of cards hide anything; a look at each for each edge would take too long.
    for (let step = 0; this.shown.size < 400 && step < 11; step++) {
      const near = [last + step, last - step].find((i) => i > 4 && i < SAMPLES - 1 && !covered(i));
      if (near !== undefined) { at = near; break; }
    }
    return (pair.cross = at);
  }

  private drawLabel(pair: Pair, taken: [number, number, number][]): void {
    const c = this.still;
    const k = this.colors;
    const curve = this.curve(pair);
    const parts: [string, string][] = [];
    const passed = pair.edges.filter((e) => e.passed > 0);
    const dropped = pair.edges.filter((e) => e.dropped > 0);
    if (this.filter.verdict !== 'denied' && passed.length) parts.push([label(passed, 'passed'), k.allow]);
    if (this.filter.verdict !== 'allowed' && dropped.length) parts.push([label(dropped, 'refused'), k.deny]);
    // At least eleven pixels on the screen.
    const px = Math.max(12, 11 / this.scale);
    const line = px * 1.5;
    c.font = `${px}px system-ui, sans-serif`;
    c.textBaseline = 'middle';
    c.textAlign = 'center';
    const at = (Math.floor(SAMPLES * 0.5)) * 2;
    const x = curve[at]!;
    let y = curve[at + 1]! - ((parts.length - 1) * line) / 2;
    for (const [text, color] of parts) {
      const w = c.measureText(text).width + px * 1.3;
      while (taken.some(([tx, ty, tw]) => Math.abs(tx - x) < (tw + w) / 2 && Math.abs(ty - y) < line)) y += line;
      taken.push([x, y, w]);
      c.beginPath();
      c.roundRect(x - w / 2, y - line / 2 + 0.5, w, line - 1, line / 2);
      c.fillStyle = k.bg;
      c.fill();
      c.lineWidth = 1;
      c.strokeStyle = color;
      c.stroke();
      c.fillStyle = color;
      c.fillText(text, x, y + 0.5);
      y += line;
    }
  }

  private drawDots(t: number): void {
    const c = this.moving;
    c.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
    for (const [x, y] of this.dots) c.clearRect(x - 6, y - 6, 12, 12);
    this.dots.length = 0;
    if (this.calm.matches) return;
    const now = this.now();
    const focus = this.focus();
    const radius = Math.max(1.6, Math.min(3.2, 3 * this.scale));
    let budget = MAX_DOTS;
    for (const denied of [true, false]) {
      c.fillStyle = denied ? this.colors.deny : this.colors.allow;
      c.beginPath();
      for (const pair of this.pairs) {
        const rate = (denied ? pair.dropping : pair.passing).now(now);
        if (rate < 0.04 || (focus && !focus.pairs.has(pair))) continue;
        if (this.filter.verdict === (denied ? 'allowed' : 'denied')) continue;
        const dots = Math.min(5, Math.max(1, Math.round(Math.log2(1 + rate))));
        const curve = this.curve(pair);
        for (let i = 0; i < dots && budget > 0; i++) {
          // Denied ones do not arrive.
          const way = ((t / (denied ? 1700 : 1500) + i / dots + (pair.from.id * 0.37) % 1) % 1) * (denied ? 0.5 : 1);
          const at = way * (SAMPLES - 1);
          const j = Math.min(SAMPLES - 2, Math.floor(at)) * 2;
          const f = at - j / 2;
          const [x, y] = this.toScreen(curve[j]! + (curve[j + 2]! - curve[j]!) * f, curve[j + 1]! + (curve[j + 3]! - curve[j + 1]!) * f);
          if (x < -5 || y < -5 || x > this.width + 5 || y > this.height + 5) continue;
          c.moveTo(x + radius, y);
          c.arc(x, y, radius, 0, 6.2832);
          this.dots.push([x, y]);
          budget--;
        }
      }
      c.fill();
    }
  }
}

function subtitle(node: MapNode): string {
  if (node.kind === 'workload') return node.pods.length > 1 ? `${node.pods.length} pods` : node.pods[0] !== undefined && node.pods[0] !== node.name ? node.pods[0] : '';
  if (node.kind === 'machine') return 'node';
  if (node.kind === 'name') return 'DNS name';
  if (node.kind === 'prefix') return 'address range';
  return node.name === 'world' ? 'any other address' : 'reserved';
}

function label(edges: { protocol: string; port: number; l7: [string, number, number][] }[], which: 'passed' | 'refused'): string {
  const ports = edges.slice(0, 3).map((e) => portName(e as never)).join(', ') + (edges.length > 3 ? ` +${edges.length - 3}` : '');
  const verbs = [...new Set(edges.flatMap((e) => e.l7.filter(([, a, b]) => (which === 'passed' ? a : b) > 0).map(([what]) => what)))];
  return short(verbs.length ? `${ports} · ${verbs.slice(0, 3).join(' ')}` : ports, 34);
}

const widths = new Map<string, string>();
function fitted(c: CanvasRenderingContext2D, text: string, room: number): string {
  const key = `${c.font}|${Math.round(room)}|${text}`;
  const known = widths.get(key);
  if (known !== undefined) return known;
  let result = text;
  for (let n = text.length; n > 3 && c.measureText(result).width > room; n--) result = short(text, n);
  if (widths.size > 8000) widths.clear();
  widths.set(key, result);
  return result;
}

function curveBetween(from: MapNode, to: MapNode, [w, h]: [number, number], both: boolean): Float32Array {
  const lift = both ? (from.id < to.id ? -6 : 6) : 0;
  const dx = to.x - from.x; const dy = to.y - from.y;
  let [ax, ay, bx, by] = [0, 0, 0, 0];
  let [c1x, c1y, c2x, c2y] = [0, 0, 0, 0];
  if (Math.abs(dx) > w * 0.9) {
    const s = Math.sign(dx);
    [ax, ay, bx, by] = [from.x + (s * w) / 2, from.y + lift, to.x - (s * w) / 2, to.y + lift];
    const bend = Math.max(36, Math.abs(bx - ax) * 0.45);
    [c1x, c1y, c2x, c2y] = [ax + s * bend, ay, bx - s * bend, by];
  } else {
    // One above the other: out and in at the same side.
    const s = both && from.id < to.id ? -1 : 1;
    [ax, ay, bx, by] = [from.x + (s * w) / 2, from.y + 5, to.x + (s * w) / 2, to.y - 5 * Math.sign(dy || 1)];
    const bend = 26 + Math.min(70, Math.abs(dy) * 0.16) + h * 0.2;
    [c1x, c1y, c2x, c2y] = [ax + s * bend, ay, bx + s * bend, by];
  }
  const curve = new Float32Array(SAMPLES * 2);
  for (let i = 0; i < SAMPLES; i++) {
    const t = i / (SAMPLES - 1); const u = 1 - t;
    curve[i * 2] = u * u * u * ax + 3 * u * u * t * c1x + 3 * u * t * t * c2x + t * t * t * bx;
    curve[i * 2 + 1] = u * u * u * ay + 3 * u * u * t * c1y + 3 * u * t * t * c2y + t * t * t * by;
  }
  return curve;
}

function path(c: CanvasRenderingContext2D, curve: Float32Array, end: number, shift: number): void {
  c.moveTo(curve[0]!, curve[1]! + shift);
  for (let i = 2; i < end; i += 2) c.lineTo(curve[i]!, curve[i + 1]! + shift);
}

function arrow(c: CanvasRenderingContext2D, curve: Float32Array, end: number, color: string, scale: number): void {
  const size = Math.max(7, 6 / scale);
  const [x, y] = [curve[end - 2]!, curve[end - 1]!];
  const a = Math.atan2(y - curve[end - 5]!, x - curve[end - 6]!);
  c.beginPath();
  c.moveTo(x, y);
  c.lineTo(x - size * Math.cos(a - 0.42), y - size * Math.sin(a - 0.42));
  c.lineTo(x - size * Math.cos(a + 0.42), y - size * Math.sin(a + 0.42));
  c.closePath();
  c.fillStyle = color;
  c.fill();
}

/** A cross on the way: it does not arrive. */
function cross(c: CanvasRenderingContext2D, curve: Float32Array, sample: number, shift: number, color: string, scale: number, bg: string): void {
  const at = sample * 2;
  const size = Math.max(4.5, 3.4 / scale);
  const [x, y] = [curve[at]!, curve[at + 1]! + shift];
  c.beginPath();
  c.arc(x, y, size * 1.7, 0, 7);
  c.fillStyle = bg;
  c.fill();
  c.lineWidth = size * 0.42;
  c.strokeStyle = color;
  c.stroke();
  c.beginPath();
  const d = size * 0.62;
  c.moveTo(x - d, y - d); c.lineTo(x + d, y + d);
  c.moveTo(x + d, y - d); c.lineTo(x - d, y + d);
  c.stroke();
}

function bounds(curve: Float32Array): [number, number, number, number] {
  let [x0, y0, x1, y1] = [Infinity, Infinity, -Infinity, -Infinity];
  for (let i = 0; i < curve.length; i += 2) {
    x0 = Math.min(x0, curve[i]!); x1 = Math.max(x1, curve[i]!);
    y0 = Math.min(y0, curve[i + 1]!); y1 = Math.max(y1, curve[i + 1]!);
  }
  return [x0, y0, x1, y1];
}

function distance(px: number, py: number, ax: number, ay: number, bx: number, by: number): number {
  const dx = bx - ax; const dy = by - ay;
  const t = Math.max(0, Math.min(1, ((px - ax) * dx + (py - ay) * dy) / (dx * dx + dy * dy || 1)));
  return Math.hypot(px - ax - t * dx, py - ay - t * dy);
}

/** A sign for each kind: shape, not colour, tells them apart. */
function glyph(c: CanvasRenderingContext2D, node: MapNode, x: number, y: number, color: string): void {
  c.strokeStyle = color;
  c.lineWidth = 1.5;
  c.beginPath();
  if (node.kind === 'workload') {
    c.moveTo(x, y - 7); c.lineTo(x + 6.5, y - 3.4); c.lineTo(x + 6.5, y + 3.6); c.lineTo(x, y + 7.2); c.lineTo(x - 6.5, y + 3.6); c.lineTo(x - 6.5, y - 3.4); c.closePath();
    c.moveTo(x - 6.5, y - 3.4); c.lineTo(x, y); c.lineTo(x + 6.5, y - 3.4);
    c.moveTo(x, y); c.lineTo(x, y + 7.2);
  } else if (node.kind === 'machine') {
    c.roundRect(x - 7, y - 6.5, 14, 6, 1.5);
    c.roundRect(x - 7, y + 1, 14, 6, 1.5);
  } else {
    c.arc(x, y, 7, 0, 6.2832);
    c.moveTo(x + 3, y); c.ellipse(x, y, 3, 7, 0, 0, 6.2832);
    c.moveTo(x - 7, y); c.lineTo(x + 7, y);
  }
  c.stroke();
}

export const summary = (pair: Pair): string => `${title(pair.from)} to ${title(pair.to)}: ${count(pair.passed)} allowed, ${count(pair.dropped)} denied`;
