// The flow table: a bounded memory of rows, of which only those in sight are in the page.

import { useEffect, useLayoutEffect, useRef, useState } from 'preact/hooks';
import type { FlowBatch, FlowRow } from './api';
import type { Filter } from './scene';
import { clock, count, plain } from './text';

/** Rows kept. */
const MOST = 20_000;
/** Below this width rows are two lines. */
const NARROW = 720;

export class FlowStore {
  /** Newest last. */
  rows: FlowRow[] = [];
  skipped = 0;
  /** Rows that left at the old end: what is at index i was at i + gone. */
  gone = 0;

  reset(): void { this.rows = []; this.skipped = 0; this.gone = 0; }

  add(batch: FlowBatch): void {
    if (batch.first) this.reset();
    this.rows.push(...batch.rows);
    this.skipped += batch.skipped;
    if (this.rows.length > MOST + 2000) {
      this.gone += this.rows.length - MOST;
      this.rows = this.rows.slice(-MOST);
    }
  }
}

/** What is asked of the server: `key=value`, `key:value` and `--key value`, as `sluice observe` has them. */
export function filterOf(filter: Filter): [string, string][] {
  const pairs: [string, string][] = [];
  if (filter.verdict === 'denied') pairs.push(['verdict', 'DROPPED'], ['verdict', 'ERROR']);
  if (filter.verdict === 'allowed') pairs.push(['verdict', 'FORWARDED'], ['verdict', 'REDIRECTED']);
  if (filter.namespace) pairs.push(['namespace', filter.namespace]);
  if (filter.node) pairs.push(['on-node', filter.node]);
  const words = filter.text.trim().split(/\s+/).filter(Boolean);
  for (let i = 0; i < words.length; i++) {
    const word = words[i]!;
    const inline = /^(?:--)?([a-z][a-z0-9-]*)[=:](.+)$/.exec(word);
    if (inline) pairs.push([inline[1]!, inline[2]!]);
    else if (word.startsWith('--') && words[i + 1]) pairs.push([word.slice(2), words[++i]!]);
  }
  return pairs;
}

/** Words that are no filter members: rows must contain them. */
export function wordsOf(text: string): string[] {
  const words = text.trim().toLowerCase().split(/\s+/).filter(Boolean);
  return words.filter((word, i) => !/^(--)?[a-z][a-z0-9-]*[=:]/.test(word) && !word.startsWith('--') && !(i > 0 && /^--[^=:]+$/.test(words[i - 1]!)));
}

const haystacks = new WeakMap<FlowRow, string>();

/** What words are looked for in; made once for a row. */
function haystack(row: FlowRow): string {
  let text = haystacks.get(row);
  if (text === undefined) haystacks.set(row, (text = words(row)));
  return text;
}

const words = (row: FlowRow): string =>
  `${row.source.name} ${row.source.address} ${row.destination.name} ${row.destination.address} ${row.destination.port ?? ''} ${row.protocol} ${row.summary} ${row.policies.join(' ')} ${row.node} ${row.reason ?? ''}`.toLowerCase();

/** `nodes`: flows of more than one have a column for it. */
interface Props { store: FlowStore; beat: number; nodes: 'one' | 'many'; text: string; chosen: FlowRow | null; choose(flow: FlowRow): void }

export function FlowTable({ store, nodes, text, chosen, choose }: Props) {
  const list = useRef<HTMLDivElement>(null);
  const [top, setTop] = useState(0);
  const [height, setHeight] = useState(600);
  const [narrow, setNarrow] = useState(innerWidth < NARROW);
  /** Held still: the rows as they were. */
  const [held, setHeld] = useState<{ rows: FlowRow[]; end: number } | null>(null);
  useEffect(() => {
    const observer = new ResizeObserver(([entry]) => { setHeight(entry!.contentRect.height); setNarrow(entry!.contentRect.width < NARROW); });
    observer.observe(list.current!);
    return () => observer.disconnect();
  }, []);
  const wanted = wordsOf(text);
  const all = held?.rows ?? store.rows;
  const rows = wanted.length ? all.filter((row) => { const h = haystack(row); return wanted.every((w) => h.includes(w)); }) : all;
  const rowH = narrow ? 58 : 31;
  const hold = () => setHeld((h) => h ?? { rows: store.rows.slice(), end: store.gone + store.rows.length });
  const release = () => { setHeld(null); list.current!.scrollTop = 0; };
  const onScroll = () => {
    const at = list.current!.scrollTop;
    setTop(at);
    if (at > rowH && !held) hold();
    if (at === 0 && held) setHeld(null);
  };
  useLayoutEffect(() => { if (!held && list.current && list.current.scrollTop !== 0) list.current.scrollTop = 0; });
  const onKey = (event: KeyboardEvent) => {
    if (event.key === ' ') { event.preventDefault(); if (held) release(); else hold(); return; }
    if (event.key !== 'ArrowDown' && event.key !== 'ArrowUp') return;
    event.preventDefault();
    hold();
    const at = chosen ? rows.indexOf(chosen) : rows.length;
    const next = rows[at + (event.key === 'ArrowDown' ? -1 : 1)];
    if (!next) return;
    choose(next);
    const y = (rows.length - 1 - rows.indexOf(next)) * rowH;
    const box = list.current!;
    if (y < box.scrollTop) box.scrollTop = Math.max(1, y); else if (y + rowH > box.scrollTop + height) box.scrollTop = y + rowH - height;
  };
  const first = Math.max(0, Math.floor(top / rowH) - 4);
  const last = Math.min(rows.length, first + Math.ceil(height / rowH) + 8);
  const shown = [];
  for (let i = first; i < last; i++) {
    const row = rows[rows.length - 1 - i]!;
    shown.push(<Row key={held ? held.end - i : store.gone + rows.length - i} row={row} y={i * rowH} narrow={narrow} nodes={nodes} chosen={row === chosen} choose={() => { hold(); choose(row); }} />);
  }
  const waiting = held ? store.gone + store.rows.length - held.end : 0;
  return (
    <section class={nodes === 'many' ? 'flows manynodes' : 'flows'} aria-label="Flows">
      <div class="flowbar">
        <span>{count(rows.length)} flows{store.skipped > 0 && <span class="muted"> · {count(store.skipped)} more not shown (too many a second: narrow the filter)</span>}</span>
        <button type="button" class={held ? 'primary' : ''} onClick={() => (held ? release() : hold())}>{held ? `Go on${waiting > 0 ? ` (${count(waiting)} new)` : ''}` : 'Hold'}</button>
      </div>
      {!narrow && <div class="flowhead" aria-hidden="true"><span>Time</span>{nodes === 'many' && <span>Node</span>}<span>Verdict</span><span>Source</span><span>Destination</span><span>What</span><span>Decided by</span></div>}
      <div class="flowlist" ref={list} onScroll={onScroll} onKeyDown={onKey} tabIndex={0} role="grid" aria-rowcount={rows.length} aria-label="Flows, newest first">
        <div class="flowspace" style={{ height: `${rows.length * rowH}px` }}>{shown}</div>
        {rows.length === 0 && <p class="empty">No flow passes this filter yet.</p>}
      </div>
    </section>
  );
}

export const verdictClass = (verdict: string): string => (verdict === 'FORWARDED' || verdict === 'REDIRECTED' ? 'allow' : 'deny');

export function what(row: FlowRow): string {
  const l7 = row.l7;
  if (l7?.kind === 'http') return `${l7.method} ${l7.path} ${l7.status ? l7.status : ''}`;
  if (l7?.kind === 'dns') return `${l7.type} ${l7.query} ${l7.rcode}`;
  if (l7?.kind === 'tls') return `TLS ${l7.serverName ?? 'without a server name'}`;
  return row.protocol.startsWith('ICMP') ? row.summary : row.protocol;
}

function Row({ row, y, narrow, nodes, chosen, choose }: { row: FlowRow; y: number; narrow: boolean; nodes: Props['nodes']; chosen: boolean; choose(): void }) {
  const source = plain(row.source.name);
  const target = `${plain(row.destination.name)}${row.destination.port ? `:${row.destination.port}` : ''}`;
  const why = row.reason ?? '';
  const by = row.policies.length ? row.policies.map(plain).join(', ') : row.because === 'no-policy' ? 'no policy' : '';
  const cls = `row ${verdictClass(row.verdict)}${chosen ? ' chosen' : ''}`;
  if (narrow) {
    return (
      <div class={cls} role="row" aria-selected={chosen} style={{ transform: `translateY(${y}px)` }} onClick={choose}>
        <span role="gridcell" class="pair"><b>{source}</b> → <b>{target}</b></span>
        <span role="gridcell" class="sub"><em>{row.verdict === 'DROPPED' ? 'DENIED' : row.verdict}</em> {clock(row.time).slice(0, 8)} {nodes === 'many' && `${plain(row.node)} · `}{plain(what(row))} {why && `· ${plain(why)}`}</span>
      </div>
    );
  }
  return (
    <div class={cls} role="row" aria-selected={chosen} style={{ transform: `translateY(${y}px)` }} onClick={choose}>
      <span role="gridcell" class="time">{clock(row.time)}</span>
      {nodes === 'many' && <span role="gridcell" class="muted" title={plain(row.node)}>{plain(row.node)}</span>}
      <span role="gridcell"><em>{row.verdict}</em></span>
      <span role="gridcell" title={`${plain(row.source.address)} identity ${row.source.identity}`}>{source}</span>
      <span role="gridcell" title={`${plain(row.destination.address)} identity ${row.destination.identity}`}>{target}</span>
      <span role="gridcell">{plain(what(row))}{why && <span class="muted"> · {plain(why)}</span>}</span>
      <span role="gridcell" class="muted">{row.because === 'default-deny' && row.policies.length ? `default deny of ${by}` : by}</span>
    </div>
  );
}
