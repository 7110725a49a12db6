// The page: what is asked of the server, what is selected, and the views around it.

import { useCallback, useEffect, useMemo, useRef, useState } from 'preact/hooks';
import { Refused, type About, type FlowRow } from './api';
import { Details, type Selection } from './details';
import { FlowStore, FlowTable, filterOf } from './flows';
import { Help } from './help';
import { live } from './live';
import { Login } from './login';
import { MapView } from './mapview';
import { MapModel, type Pair, title } from './model';
import { Policies } from './policies';
import type { Filter } from './scene';
import { Spark } from './spark';
import { plain, rate } from './text';
import { useTheme } from './theme';

export type View = 'map' | 'flows' | 'policies';
const VIEWS: [View, string][] = [['map', 'Map'], ['flows', 'Flows'], ['policies', 'Policies']];

const viewOfHash = (): View => (VIEWS.find(([view]) => location.hash === `#${view}`)?.[0] ?? 'map');

export function App() {
  const model = useMemo(() => new MapModel(), []);
  const flows = useMemo(() => new FlowStore(), []);
  const [view, setView] = useState<View>(viewOfHash);
  const [about, setAbout] = useState<About | null>(null);
  const [trouble, setTrouble] = useState<Error | null>(null);
  const [beat, setBeat] = useState(0);
  const [filter, setFilter] = useState<Filter>({ verdict: 'all', namespace: '', node: '', text: '', quiet: true });
  const [selection, setSelection] = useState<Selection>(null);
  const [help, setHelp] = useState(false);
  const [attempt, setAttempt] = useState(0);
  const [theme, otherTheme] = useTheme();
  const input = useRef<HTMLInputElement>(null);
  const go = useCallback((next: View) => { history.replaceState(null, '', `#${next}`); setView(next); }, []);

  // The text is sent when typing has paused.
  const [text, setText] = useState('');
  useEffect(() => { const timer = setTimeout(() => setText(filter.text), 300); return () => clearTimeout(timer); }, [filter.text]);
  const query = JSON.stringify(filterOf({ ...filter, text }));
  const rows = view === 'flows';
  useEffect(() => {
    if (rows) flows.reset();
    return live(JSON.parse(query), rows, () => model.cursor, {
      about: setAbout,
      map: (change) => { model.apply(change, performance.now()); setBeat((n) => n + 1); },
      flows: (batch) => { flows.add(batch); setBeat((n) => n + 1); },
      trouble: setTrouble,
    });
  }, [rows, rows ? query : '', attempt]);

  useEffect(() => {
    const onHash = () => setView(viewOfHash());
    const onKey = (event: KeyboardEvent) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const typing = event.target instanceof HTMLInputElement || event.target instanceof HTMLSelectElement;
      if (event.key === 'Escape') {
        if (typing) (event.target as HTMLElement).blur();
        setHelp(false);
        setSelection(null);
        return;
      }
      if (typing) return;
      const at = ['1', '2', '3'].indexOf(event.key);
      if (at >= 0) go(VIEWS[at]![0]);
      else if (event.key === '/') { event.preventDefault(); input.current?.focus(); }
      else if (event.key === '?') setHelp((shown) => !shown);
      else if (event.key === 'd') setFilter((f) => ({ ...f, verdict: f.verdict === 'denied' ? 'all' : 'denied' }));
      else if (event.key === 't') otherTheme();
    };
    addEventListener('hashchange', onHash);
    addEventListener('keydown', onKey);
    return () => { removeEventListener('hashchange', onHash); removeEventListener('keydown', onKey); };
  }, []);

  const denied = useMemo(() => worst(model), [beat]);
  if (trouble instanceof Refused && trouble.status === 401) return <Login done={() => setAttempt((n) => n + 1)} />;
  const bad = trouble instanceof Refused && trouble.status === 400 ? trouble.message : '';
  const where = about ? (about.nodes.length === 1 ? about.nodes[0]! : `${about.nodes.length} nodes`) : '';
  return (
    <div class="page">
      <header class="top">
        <div class="brand"><img src="/icon.svg" alt="" width="24" height="24" /><strong>sluice</strong>{where && <span class="where" title={about?.nodes.map(plain).join(', ')}>{plain(where)}</span>}</div>
        <nav class="tabs" aria-label="Views">
          {VIEWS.map(([name, label], i) => (
            <a key={name} href={`#${name}`} aria-current={view === name ? 'page' : undefined} title={`${label} (${i + 1})`}>{label}</a>
          ))}
        </nav>
        <div class="filters" role="search">
          <div class="segments" role="group" aria-label="Verdict">
            {(['all', 'allowed', 'denied'] as const).map((v) => (
              <button key={v} type="button" class={v} aria-pressed={filter.verdict === v} onClick={() => setFilter({ ...filter, verdict: v })}>{v[0]!.toUpperCase() + v.slice(1)}</button>
            ))}
          </div>
          <select aria-label="Namespace" value={filter.namespace} onChange={(e) => setFilter({ ...filter, namespace: e.currentTarget.value })}>
            <option value="">All namespaces</option>
            {model.namespaces().map((name) => <option key={name} value={name}>{name}</option>)}
          </select>
          {view === 'flows' && about && about.nodes.length > 1 && (
            <select aria-label="Node" value={filter.node} onChange={(e) => setFilter({ ...filter, node: e.currentTarget.value })}>
              <option value="">All nodes</option>
              {[...new Set([...about.nodes, ...(filter.node ? [filter.node] : [])])].map((name) => <option key={name} value={name}>{plain(name)}</option>)}
            </select>
          )}
          <input ref={input} type="search" value={filter.text} spellcheck={false} autocomplete="off" aria-label="Filter" aria-invalid={bad !== ''}
            placeholder={view === 'flows' ? 'pod=shop/frontend not-port=53 …' : 'Search'} onInput={(e) => setFilter({ ...filter, text: e.currentTarget.value })} />
        </div>
        <div class="right">
          <Spark model={model} beat={beat} />
          <button type="button" class="icon" title="Dark or light (t)" aria-label="Dark or light" onClick={otherTheme}>{theme === 'dark' ? '☾' : '☀'}</button>
          <button type="button" class="icon" title="Keys and filters (?)" aria-label="Help" onClick={() => setHelp(true)}>?</button>
        </div>
      </header>
      {bad && <p class="notice bad" role="alert">{plain(bad)}</p>}
      {trouble && !bad && <p class="notice bad" role="alert">The connection is lost; trying again. ({plain(trouble.message)})</p>}
      {about?.trouble.map((line) => <p key={line} class="notice warn">{plain(line)}</p>)}
      <main class={selection ? 'with-details' : ''}>
        <div class="view">
          {view === 'map' && <MapView model={model} filter={filter} selection={selection} select={setSelection} theme={theme} beat={beat} />}
          {view === 'flows' && <FlowTable store={flows} beat={beat} nodes={(about?.nodes.length ?? 1) > 1 ? 'many' : 'one'} text={filter.text} chosen={selection?.kind === 'flow' ? selection.flow : null} choose={(flow: FlowRow) => setSelection({ kind: 'flow', flow })} />}
          {view === 'policies' && <Policies filter={filter} scope={about?.scope ?? 'node'} />}
          {view === 'map' && denied.length > 0 && !selection && <Denied pairs={denied} choose={(pair) => setSelection({ kind: 'pair', pair })} />}
        </div>
        {selection && <Details selection={selection} model={model} beat={beat} select={setSelection} scope={about?.scope ?? 'node'} close={() => setSelection(null)} />}
      </main>
      {help && <Help close={() => setHelp(false)} />}
    </div>
  );
}

/** Denied pairs: those that are tried now first, then the newest. */
function worst(model: MapModel): Pair[] {
  const now = performance.now();
  const all: Pair[] = [];
  for (const pair of model.pairs.values()) if (pair.dropped > 0 && pair.from !== pair.to) all.push(pair);
  return all.sort((a, b) => b.dropping.now(now) - a.dropping.now(now) || b.last - a.last).slice(0, 6);
}

function Denied({ pairs, choose }: { pairs: Pair[]; choose(pair: Pair): void }) {
  const now = performance.now();
  return (
    <aside class="deniedlist" aria-label="Denied connections">
      <h2>Denied</h2>
      <ul>
        {pairs.map((pair) => (
          <li key={pair.key}>
            <button type="button" aria-label={`${title(pair.from)} to ${title(pair.to)}`} onClick={() => choose(pair)}>
              <span class="pairname" aria-hidden="true">{pair.from.namespace && <i>{pair.from.namespace}/</i>}{pair.from.name}<i> → </i>{pair.to.namespace && pair.to.namespace !== pair.from.namespace && <i>{pair.to.namespace}/</i>}{pair.to.name}</span>
              <span class="ports">{[...new Set(pair.edges.filter((e) => e.dropped > 0).map((e) => e.port || e.protocol))].slice(0, 3).join(', ')}</span>
              <span class="rate">{pair.dropping.now(now) > 0.05 ? rate(pair.dropping.now(now)) : `${pair.dropped}×`}</span>
            </button>
          </li>
        ))}
      </ul>
    </aside>
  );
}
