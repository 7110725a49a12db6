// The map as the page knows it: nodes, edges by port, and pairs (what is drawn: all ports between two nodes).

import type { EdgeData, MapChange, NodeData, NodeKind } from './api';
import { plain } from './text';

/** Rates are means over about this many milliseconds. */
const TAU = 4000;

/** A rate that decays by itself. */
export class Rate {
  private value = 0;
  private at = 0;
  add(events: number, now: number): void {
    this.value = this.now(now) + (events * 1000) / TAU;
    this.at = now;
  }
  /** Events a second. */
  now(now: number): number {
    return this.value === 0 ? 0 : this.value * Math.exp((this.at - now) / TAU);
  }
}

export interface MapNode {
  id: number; kind: NodeKind; namespace: string; name: string; pods: string[];
  /** Centre, in the map's own units. */
  x: number; y: number; tx: number; ty: number; placed: boolean;
  pairs: Pair[];
}

export interface Edge {
  id: number; from: number; to: number; protocol: string; port: number; passed: number; dropped: number;
  last: number; reason: string; l7: [string, number, number][]; passing: Rate; dropping: Rate;
}

export interface Pair {
  key: string; from: MapNode; to: MapNode; edges: Edge[];
  passed: number; dropped: number; last: number; passing: Rate; dropping: Rate;
  /** The curve, sampled; made by the scene. */
  curve?: Float32Array; stamp?: number;
  /** The sample at which the cross of a denied curve is. */
  cross?: number; crossStamp?: number;
}

export const isOutside = (kind: NodeKind): boolean => kind === 'name' || kind === 'prefix' || kind === 'reserved';

/** `namespace/name`, or the name. */
export const title = (node: MapNode): string =>
  node.kind === 'workload' ? `${node.namespace}/${node.name}` : node.kind === 'reserved' ? reserved(node.name) : node.name;

function reserved(name: string): string {
  return name === 'world' ? 'world' : name;
}

export const portName = (edge: Edge): string => {
  if (edge.protocol.startsWith('ICMP')) return edge.protocol;
  return edge.port === 0 ? `${edge.protocol} other ports` : edge.protocol === 'TCP' ? String(edge.port) : `${edge.port}/${edge.protocol}`;
};

export class MapModel {
  cursor = '';
  nodes: (MapNode | undefined)[] = [];
  edges: (Edge | undefined)[] = [];
  pairs = new Map<string, Pair>();
  /** Grows when nodes or pairs come. */
  shape = 0;
  /** Grows when an edge changes its look (first drop, first pass). */
  look = 0;
  passing = new Rate();
  dropping = new Rate();
  missed = 0;

  get epoch(): string { return this.cursor.split('.')[0] ?? ''; }

  apply(change: MapChange, now: number): void {
    const old = change.whole ? this.nodes : [];
    if (change.whole) {
      const places = new Map(old.filter((n) => n !== undefined).map((n) => [`${n.kind} ${n.namespace} ${n.name}`, n]));
      this.nodes = []; this.edges = []; this.pairs.clear();
      for (const data of change.nodes) this.putNode(data, places.get(`${data.kind} ${plain(data.namespace)} ${plain(data.name)}`));
    } else {
      for (const data of change.nodes) this.putNode(data);
    }
    for (const data of change.edges) this.putEdge(data, now, change.whole);
    this.cursor = change.cursor;
    this.missed = change.missed;
    if (change.whole) this.shape++;
  }

  private putNode(data: NodeData, place?: MapNode): void {
    const known = this.nodes[data.id];
    if (known) { known.pods = data.pods.map(plain); this.look++; return; }
    this.nodes[data.id] = {
      id: data.id, kind: data.kind, namespace: plain(data.namespace), name: plain(data.name), pods: data.pods.map(plain),
      x: place?.x ?? 0, y: place?.y ?? 0, tx: place?.tx ?? 0, ty: place?.ty ?? 0, placed: place?.placed ?? false, pairs: [],
    };
    this.shape++;
  }

  private putEdge(data: EdgeData, now: number, whole: boolean): void {
    const [id, from, to, protocol, port, passed, dropped, last, reason, l7] = data;
    const source = this.nodes[from];
    const target = this.nodes[to];
    if (!source || !target) return;
    const key = `${from}>${to}`;
    let pair = this.pairs.get(key);
    if (!pair) {
      pair = { key, from: source, to: target, edges: [], passed: 0, dropped: 0, last: 0, passing: new Rate(), dropping: new Rate() };
      this.pairs.set(key, pair);
      source.pairs.push(pair);
      if (target !== source) target.pairs.push(pair);
      this.shape++;
    }
    let edge = this.edges[id];
    if (!edge) {
      edge = { id, from, to, protocol, port, passed: 0, dropped: 0, last, reason, l7: [], passing: new Rate(), dropping: new Rate() };
      this.edges[id] = edge;
      pair.edges.push(edge);
      this.look++;
    }
    const [morePassed, moreDropped] = [passed - edge.passed, dropped - edge.dropped];
    if ((edge.passed === 0) !== (passed === 0) || (edge.dropped === 0) !== (dropped === 0) || edge.l7.length !== l7.length) this.look++;
    edge.passed = passed; edge.dropped = dropped; edge.last = last; edge.reason = reason;
    edge.l7 = l7.map(([what, a, b]) => [plain(what), a, b]);
    pair.passed += morePassed; pair.dropped += moreDropped; pair.last = Math.max(pair.last, last);
    // The first map is the past, not a burst.
    if (whole) return;
    for (const [r, n] of [[edge.passing, morePassed], [pair.passing, morePassed], [this.passing, morePassed],
      [edge.dropping, moreDropped], [pair.dropping, moreDropped], [this.dropping, moreDropped]] as const) {
      if (n > 0) r.add(n, now);
    }
  }

  namespaces(): string[] {
    const names = new Set<string>();
    for (const node of this.nodes) if (node?.kind === 'workload') names.add(node.namespace);
    return [...names].sort();
  }
}
