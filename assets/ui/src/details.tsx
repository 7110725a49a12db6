// What is selected: a workload, a connection between two, or one flow; for what is denied, why and what would allow it.

import { useEffect, useRef, useState } from 'preact/hooks';
import { Refused, get, pathOf, question, type FlowRow, type Governed, type Scope, type Why, type WhySide } from './api';
import { verdictClass, what } from './flows';
import { type Edge, type MapModel, type MapNode, type Pair, portName, title } from './model';
import { ago, clock, count, plain, rate } from './text';

export type Selection = { kind: 'node'; node: MapNode } | { kind: 'pair'; pair: Pair } | { kind: 'flow'; flow: FlowRow } | null;

interface Props { selection: NonNullable<Selection>; model: MapModel; beat: number; scope: Scope; select(selection: Selection): void; close(): void }

export function Details(props: Props) {
  const { selection, close } = props;
  const panel = useRef<HTMLElement>(null);
  const key = selection.kind === 'node' ? `n${selection.node.id}` : selection.kind === 'pair' ? selection.pair.key : `f${selection.flow.time}${selection.flow.source.address}${selection.flow.source.port}`;
  useEffect(() => { panel.current!.scrollTop = 0; }, [key]);
  return (
    <aside class="details" ref={panel} aria-label="Details">
      <button type="button" class="icon close" aria-label="Close" title="Close (Esc)" onClick={close}>✕</button>
      {selection.kind === 'node' && <NodeDetails key={key} {...props} node={selection.node} />}
      {selection.kind === 'pair' && <PairDetails key={key} {...props} pair={selection.pair} />}
      {selection.kind === 'flow' && <FlowDetails key={key} {...props} flow={selection.flow} />}
    </aside>
  );
}

const KINDS: Record<string, string> = { workload: 'Workload', machine: 'Node', name: 'DNS name', prefix: 'Address range', reserved: 'Reserved identity' };

function NodeDetails({ node, select, model, scope }: Props & { node: MapNode }) {
  const [governed, setGoverned] = useState<Governed[] | null>(null);
  useEffect(() => {
    if (node.kind !== 'workload') return;
    get<Governed[]>('governed').then(setGoverned, () => setGoverned([]));
  }, []);
  const mine = governed?.filter((g) => node.pods.some((pod) => plain(g.pod) === `${node.namespace}/${pod}`)) ?? [];
  const out = node.pairs.filter((p) => p.from === node && p.to !== node);
  const into = node.pairs.filter((p) => p.to === node && p.from !== node);
  return (
    <>
      <p class="kind">{KINDS[node.kind]}{node.kind === 'workload' && ` in ${node.namespace}`}</p>
      <h2>{node.name}</h2>
      {node.pods.length > 1 && <p class="muted">{node.pods.length} pods: {node.pods.slice(0, 8).join(', ')}{node.pods.length > 8 && ' …'}</p>}
      {mine[0] && <Sides governed={mine[0]} />}
      {governed && mine.length === 0 && <p class="muted">{scope === 'node' ? 'Its pods live on another node: that node\'s page knows which policies select them.' : 'No node that answers has its pods.'}</p>}
      <Connections title="Calls" pairs={out} other={(p) => p.to} select={select} />
      <Connections title="Is called by" pairs={into} other={(p) => p.from} select={select} />
      {model.cursor && out.length + into.length === 0 && <p class="muted">Silent since this page looks.</p>}
    </>
  );
}

function Sides({ governed }: { governed: Governed }) {
  return (
    <section>
      <h3>Policies that select it</h3>
      {(['ingress', 'egress'] as const).map((direction) => {
        const side = governed[direction];
        return (
          <div class="side" key={direction}>
            <b>{direction}</b> {side.defaultDeny ? <span class="tag deny">default deny</span> : <span class="tag">{side.policies.length ? 'open by default' : 'open: no policy'}</span>}
            <ul>{side.policies.map((object) => <li key={pathOf(object)}><span class="muted">{object.kind}</span> {plain(pathOf(object))}</li>)}</ul>
          </div>
        );
      })}
      <details><summary>Identity {governed.identity}</summary><ul class="labels">{governed.labels.map((label) => <li key={label}>{plain(label)}</li>)}</ul></details>
    </section>
  );
}

function Connections({ title: heading, pairs, other, select }: { title: string; pairs: Pair[]; other(pair: Pair): MapNode; select(selection: Selection): void }) {
  if (pairs.length === 0) return null;
  const now = performance.now();
  const sorted = [...pairs].sort((a, b) => Number(b.dropped > 0) - Number(a.dropped > 0) || b.passed - a.passed).slice(0, 60);
  return (
    <section>
      <h3>{heading}</h3>
      <ul class="connections">
        {sorted.map((pair) => (
          <li key={pair.key}>
            <button type="button" onClick={() => select({ kind: 'pair', pair })}>
              <span>{title(other(pair))}</span>
              <span class="muted">{pair.edges.slice(0, 3).map(portName).join(', ')}</span>
              {pair.passed > 0 && <span class="allow">{pair.passing.now(now) > 0.05 ? rate(pair.passing.now(now)) : count(pair.passed)}</span>}
              {pair.dropped > 0 && <span class="deny">✕ {count(pair.dropped)}</span>}
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}

function PairDetails({ pair, model, select, scope }: Props & { pair: Pair }) {
  const now = performance.now();
  const edges = [...pair.edges].sort((a, b) => Number(b.dropped > 0) - Number(a.dropped > 0) || b.last - a.last);
  const [open, setOpen] = useState<number | null>(() => edges.find((e) => e.dropped > 0)?.id ?? null);
  return (
    <>
      <p class="kind">Connection</p>
      <h2><button type="button" class="link" onClick={() => select({ kind: 'node', node: pair.from })}>{title(pair.from)}</button><span class="muted"> → </span><button type="button" class="link" onClick={() => select({ kind: 'node', node: pair.to })}>{title(pair.to)}</button></h2>
      {edges.slice(0, 40).map((edge) => (
        <section class="edge" key={edge.id}>
          <h3>
            {portName(edge)}
            {edge.passed > 0 && <span class="tag allow">{count(edge.passed)} allowed{edge.passing.now(now) > 0.05 && `, ${rate(edge.passing.now(now))}`}</span>}
            {edge.dropped > 0 && <span class="tag deny">{count(edge.dropped)} denied{edge.dropping.now(now) > 0.05 && `, ${rate(edge.dropping.now(now))}`}</span>}
          </h3>
          <p class="muted">Last seen {ago(edge.last, Date.now())}{edge.dropped > 0 && edge.reason && `; dropped: ${plain(edge.reason)}`}</p>
          {edge.l7.length > 0 && <Layer7 edge={edge} />}
          {edge.dropped > 0 && (open === edge.id
            ? <EdgeWhy edge={edge} model={model} scope={scope} />
            : <button type="button" onClick={() => setOpen(edge.id)}>Why, and what would allow it</button>)}
          {edge.dropped === 0 && (open === edge.id
            ? <EdgeWhy edge={edge} model={model} scope={scope} />
            : <button type="button" class="quiet" onClick={() => setOpen(edge.id)}>Why it is allowed</button>)}
        </section>
      ))}
    </>
  );
}

function Layer7({ edge }: { edge: Edge }) {
  return (
    <ul class="l7">
      {edge.l7.map(([name, passed, refused]) => (
        <li key={name}><b>{name}</b>{passed > 0 && <span class="allow">{count(passed)}</span>}{refused > 0 && <span class="deny">✕ {count(refused)}</span>}</li>
      ))}
    </ul>
  );
}

/** The newest flow of an edge: the denied one, where there is one. */
function useNewest(edge: Edge, model: MapModel): [FlowRow | null, string] {
  const [flow, setFlow] = useState<FlowRow | null>(null);
  const [problem, setProblem] = useState('');
  useEffect(() => {
    get<{ denied: FlowRow | null; allowed: FlowRow | null }>(`edge/${edge.id}`, { epoch: model.epoch })
      .then(({ denied, allowed }) => setFlow(denied ?? allowed), (error: Error) => setProblem(error.message));
  }, [edge.id, edge.dropped > 0]);
  return [flow, problem];
}

/** The newest flow of an edge, explained. */
function EdgeWhy({ edge, model, scope }: { edge: Edge; model: MapModel; scope: Scope }) {
  const [flow, problem] = useNewest(edge, model);
  if (problem) return <p class="notice warn">{plain(problem)}</p>;
  return flow ? <WhyOf flow={flow} scope={scope} /> : <p class="muted">…</p>;
}

function FlowDetails({ flow, scope }: Props & { flow: FlowRow }) {
  const ends: [string, FlowRow['source']][] = [['From', flow.source], ['To', flow.destination]];
  return (
    <>
      <p class="kind">Flow at {clock(flow.time)}</p>
      <h2 class={verdictClass(flow.verdict)}>{flow.verdict}</h2>
      <dl class="facts">
        {ends.map(([name, party]) => <><dt>{name}</dt><dd>{plain(party.name)} <span class="muted">{plain(party.address)}{party.port ? `:${party.port}` : ''}, identity {party.identity}</span></dd></>)}
        <dt>What</dt><dd>{plain(what(flow))}</dd>
        {flow.service && <><dt>Service</dt><dd>{plain(flow.service)}</dd></>}
        {flow.reason && <><dt>Reason</dt><dd>{plain(flow.reason)}</dd></>}
        <dt>Direction</dt><dd>{flow.direction}{flow.reply && ', reply'}</dd>
        <dt>Node</dt><dd>{plain(flow.node)}</dd>
        {flow.l7?.latencyUs !== undefined && flow.l7.latencyUs > 0 && <><dt>Latency</dt><dd>{(flow.l7.latencyUs / 1000).toFixed(1)} ms</dd></>}
        {flow.policies.length > 0 && <><dt>Policies</dt><dd>{flow.policies.map(plain).join(', ')}</dd></>}
      </dl>
      {!flow.reply && <WhyOf flow={flow} scope={scope} />}
    </>
  );
}

const BECAUSE: Record<string, string> = {
  rules: 'by rules', 'default-deny': 'by default deny: no rule matches', 'no-policy': 'no policy selects it',
  'allow-localhost': 'the node reaches its own pods', hairpin: 'a pod reaches itself',
};

function WhyOf({ flow, scope }: { flow: FlowRow; scope: Scope }) {
  const [why, setWhy] = useState<Why | null>(null);
  const [problem, setProblem] = useState('');
  useEffect(() => {
    let stale = false;
    get<Why>('why', question(flow)).then((w) => { if (!stale) setWhy(w); }, (error: Error) => { if (!stale) setProblem(error instanceof Refused ? error.message : 'no answer'); });
    return () => { stale = true; };
  }, [flow]);
  if (problem) return <p class="notice warn">{plain(problem)}</p>;
  if (!why) return <p class="muted">…</p>;
  const deniedThen = verdictClass(flow.verdict) === 'deny';
  return (
    <div class="why">
      <h3>Why</h3>
      {why.sides.length === 0 && <p class="muted">{scope === 'node' ? 'Neither end lives on this node: the nodes where they live decide.' : 'Neither end lives on a node that answers: nothing here decides about it.'}</p>}
      {why.sides.map((side) => <SideOf key={side.direction + side.node} side={side} />)}
      {why.missing.map((node) => <p key={node} class="notice warn">Not asked, and a side may be missing here: {plain(node)}</p>)}
      {deniedThen && why.verdict === 'allowed' && why.sides.length > 0 && why.missing.length === 0 && <p class="notice good">The policies that are loaded now allow it.</p>}
      {why.suggestion && <Suggested suggestion={why.suggestion} />}
    </div>
  );
}

function SideOf({ side }: { side: WhySide }) {
  const denied = side.verdict === 'denied';
  const near = side.nearMiss;
  return (
    <div class={`verdict ${denied ? 'deny' : 'allow'}`}>
      <p><b>{side.direction}</b> {side.verdict === 'redirected' ? 'allowed, a proxy judges each request' : side.verdict} <span class="muted">{BECAUSE[side.because] ?? plain(side.because)}{side.node && `, on ${plain(side.node)}`}</span></p>
      {side.objects.length > 0 && <p>{side.because === 'default-deny' ? 'turned on by ' : ''}{side.objects.map((o, i) => <span key={pathOf(o)}>{i > 0 && ', '}<span class="muted">{o.kind}</span> {plain(pathOf(o))}</span>)}</p>}
      {side.rules.length > 0 && <ul>{side.rules.map((rule) => <li key={rule}><code>{plain(rule)}</code></li>)}</ul>}
      {near && <p class="near">Closest rule: {plain(near)}</p>}
    </div>
  );
}

function Suggested({ suggestion }: { suggestion: NonNullable<Why['suggestion']> }) {
  const [copied, setCopied] = useState(false);
  const yaml = suggestion.yaml;
  const copy = async () => {
    // Loopback is a secure context; elsewhere there is TLS.
    await navigator.clipboard.writeText(yaml ?? '').then(() => setCopied(true), () => setCopied(false));
    setTimeout(() => setCopied(false), 1500);
  };
  return (
    <section class="suggestion">
      <h3>What would allow it {suggestion.verified && <span class="tag allow" title="The engine allowed this connection with these objects; they were taken back">tried in the engine</span>}</h3>
      {suggestion.notes.map((note) => <p key={note} class="muted">{plain(note)}</p>)}
      {yaml && <div class="code"><button type="button" onClick={copy}>{copied ? 'Copied' : 'Copy'}</button><pre tabIndex={0}>{plainLines(yaml)}</pre></div>}
    </section>
  );
}

const plainLines = (text: string): string => text.split('\n').map(plain).join('\n');
