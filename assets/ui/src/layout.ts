// Where nodes are: workloads inside their namespace's box, callers left of those they call; outsiders in a box of
// their own. Deterministic, and cheap enough to be done again whenever something new appears; the scene moves nodes
// to their new places smoothly.

import { type MapModel, type MapNode, isOutside } from './model';

export interface Box { key: string; title: string; x: number; y: number; w: number; h: number; count: number }

export interface Sizes { cardW: number; cardH: number; gapX: number; gapY: number; pad: number; head: number }

export const ROOMY: Sizes = { cardW: 172, cardH: 44, gapX: 84, gapY: 20, pad: 22, head: 34 };
/** For narrow screens: two columns, callers above those they call. */
const NARROW: Sizes = { cardW: 172, cardH: 44, gapX: 48, gapY: 26, pad: 18, head: 34 };
export const DENSE: Sizes = { cardW: 172, cardH: 40, gapX: 18, gapY: 12, pad: 18, head: 32 };

/** Width over height below which a screen is a phone's. */
export const NARROW_BELOW = 0.9;
/** Boxes with more nodes than this are grids. */
const LAYERED = 48;

interface Group { key: string; title: string; nodes: MapNode[]; w: number; h: number; place(x: number, y: number): void }

const groupOf = (node: MapNode): [string, string] =>
  node.kind === 'workload' ? [`ns ${node.namespace}`, node.namespace]
    : isOutside(node.kind) ? ['~world', 'Outside'] : ['~machines', 'Nodes'];

/** Gives every shown node its target; `aspect` is width over height of what there is to fill. */
export function layout(model: MapModel, shown: (node: MapNode) => boolean, aspect: number): Box[] {
  const groups = new Map<string, { title: string; nodes: MapNode[] }>();
  let total = 0;
  for (const node of model.nodes) {
    if (!node || !shown(node)) continue;
    total++;
    const [key, title] = groupOf(node);
    let group = groups.get(key);
    if (!group) groups.set(key, (group = { title, nodes: [] }));
    group.nodes.push(node);
  }
  const dense = total > 150;
  const narrow = aspect < NARROW_BELOW;
  const made: Group[] = [];
  for (const [key, { title, nodes }] of groups) {
    const size = dense || nodes.length > LAYERED ? DENSE : narrow ? NARROW : ROOMY;
    const columns = key.startsWith('~') ? stacked(nodes, narrow, groups.size)
      : nodes.length > LAYERED ? grid(nodes, narrow) : narrow ? twoColumns(layered(nodes)) : layered(nodes);
    made.push(sized(key, title, nodes, columns, size));
  }
  return packed(made, aspect);
}

function byName(a: MapNode, b: MapNode): number {
  return a.name < b.name ? -1 : a.name > b.name ? 1 : a.id - b.id;
}

/** Quiet workloads last, so that a large namespace begins with what happens. */
function byActivity(a: MapNode, b: MapNode): number {
  return Number(b.pairs.length > 0) - Number(a.pairs.length > 0) || byName(a, b);
}

function grid(nodes: MapNode[], narrow = false): MapNode[][] {
  const sorted = [...nodes].sort(byActivity);
  const columns = narrow ? Math.min(2, sorted.length) : Math.max(1, Math.round(Math.sqrt(sorted.length / 3.2)));
  return Array.from({ length: columns }, (_, c) => sorted.filter((_, i) => i % columns === c));
}

function twoColumns(columns: MapNode[][]): MapNode[][] {
  const rows: [MapNode | undefined, MapNode | undefined][] = [];
  for (const rank of columns) for (let i = 0; i < rank.length; i += 2) rows.push([rank[i], rank[i + 1]]);
  const two = [rows.map((r) => r[0]!), rows.map((r) => r[1]).filter((n) => n !== undefined)];
  return two.filter((column) => column.length > 0);
}

function stacked(nodes: MapNode[], narrow: boolean, groups: number): MapNode[][] {
  const sorted = [...nodes].sort(byActivity);
  const perColumn = narrow ? Math.ceil(sorted.length / 2) : Math.max(8, Math.ceil(Math.sqrt(sorted.length * Math.max(2, groups))));
  const columns: MapNode[][] = [];
  for (let i = 0; i < sorted.length; i += perColumn) columns.push(sorted.slice(i, i + perColumn));
  return columns;
}

/** Columns by distance from those whom nobody inside calls; rows near those whom they talk to. */
function layered(nodes: MapNode[]): MapNode[][] {
  const inside = new Set(nodes);
  const rank = new Map<MapNode, number>();
  const active = new Set<MapNode>();
  const visit = (node: MapNode): number => {
    const known = rank.get(node);
    if (known !== undefined) return known;
    if (active.has(node)) return 0;
    active.add(node);
    let r = 0;
    for (const pair of node.pairs) {
      // Denied attempts say nothing about who belongs where.
      if (pair.to === node && pair.from !== node && inside.has(pair.from) && pair.passed > 0) r = Math.max(r, visit(pair.from) + 1);
    }
    active.delete(node);
    r = Math.min(r, 5);
    rank.set(node, r);
    return r;
  };
  const sorted = [...nodes].sort(byName);
  sorted.forEach(visit);
  const columns: MapNode[][] = [];
  for (const node of sorted) (columns[rank.get(node)!] ??= []).push(node);
  const filled = columns.filter((c) => c);
  // Nobody talks: a column would be a tower.
  if (filled.length === 1 && filled[0]!.length > 4) return grid(nodes);
  for (let c = 1; c < filled.length; c++) {
    const row = new Map(filled[c - 1]!.map((node, i) => [node, i]));
    const middle = (node: MapNode): number => {
      const rows = node.pairs.filter((p) => p.to === node && row.has(p.from)).map((p) => row.get(p.from)!);
      return rows.length ? rows.reduce((a, b) => a + b, 0) / rows.length : 1e6;
    };
    filled[c]!.sort((a, b) => middle(a) - middle(b) || byName(a, b));
  }
  return filled;
}

function sized(key: string, title: string, nodes: MapNode[], columns: MapNode[][], s: Sizes): Group {
  const rows = Math.max(...columns.map((c) => c.length));
  const w = columns.length * s.cardW + (columns.length - 1) * s.gapX + 2 * s.pad;
  const inner = rows * s.cardH + (rows - 1) * s.gapY;
  const h = inner + 2 * s.pad + s.head - 8;
  const place = (x: number, y: number): void => {
    columns.forEach((column, c) => {
      const top = (inner - (column.length * s.cardH + (column.length - 1) * s.gapY)) / 2;
      column.forEach((node, r) => {
        node.tx = x + s.pad + c * (s.cardW + s.gapX) + s.cardW / 2;
        node.ty = y + s.head + s.pad - 8 + top + r * (s.cardH + s.gapY) + s.cardH / 2;
      });
    });
  };
  return { key, title, nodes, w, h, place };
}

/** Shelves of namespaces; what is outside the cluster stands to their right (below them on a narrow screen). */
function packed(groups: Group[], aspect: number): Box[] {
  const inside = groups.filter((g) => !g.key.startsWith('~')).sort((a, b) => (a.key < b.key ? -1 : 1));
  const aside = groups.filter((g) => g.key.startsWith('~')).sort((a, b) => (a.key > b.key ? -1 : 1));
  if (aspect < NARROW_BELOW) return shelves(inside, aside, 0, true);
  // The number of boxes side by side with which everything is largest.
  let best: Box[] = [];
  let least = Infinity;
  const widest = Math.max(0, ...inside.map((g) => g.w));
  for (let n = 1; n <= Math.min(inside.length, 24) || n === 1; n++) {
    const boxes = shelves(inside, aside, n * widest + (n - 1) * GAP + 1, false);
    const w = Math.max(...boxes.map((b) => b.x + b.w), 1);
    const h = Math.max(...boxes.map((b) => b.y + b.h), 1);
    const cost = Math.max(w / aspect, h);
    if (cost < least) { least = cost; best = boxes; }
  }
  // The last try placed the nodes; the best one is to stand.
  for (const box of best) groupsPlace(box, groups);
  return best;
}

const GAP = 64;

function shelves(inside: Group[], aside: Group[], limit: number, below: boolean): Box[] {
  const boxes: Box[] = [];
  const put = (g: Group, x: number, y: number): void => {
    g.place(x, y);
    boxes.push({ key: g.key, title: g.title, x, y, w: g.w, h: g.h, count: g.nodes.length });
  };
  let [x, y, shelf, right] = [0, 0, 0, 0];
  for (const g of inside) {
    if (x > 0 && x + g.w > limit) { x = 0; y += shelf + GAP; shelf = 0; }
    put(g, x, y);
    right = Math.max(right, x + g.w);
    x += g.w + GAP;
    shelf = Math.max(shelf, g.h);
  }
  const bottom = y + shelf;
  const total = aside.reduce((sum, g) => sum + g.h, 0) + GAP * Math.max(0, aside.length - 1);
  let at = below ? bottom + (inside.length ? GAP : 0) : (bottom - total) / 2;
  const left = below ? 0 : right + (inside.length ? GAP * 1.6 : 0);
  for (const g of aside) { put(g, left, at); at += g.h + GAP; }
  const top = Math.min(0, ...boxes.map((b) => b.y));
  if (top < 0) for (const box of boxes) { box.y -= top; groupsPlace(box, [...inside, ...aside]); }
  return boxes;
}

function groupsPlace(box: Box, groups: Group[]): void {
  groups.find((g) => g.key === box.key)!.place(box.x, box.y);
}
