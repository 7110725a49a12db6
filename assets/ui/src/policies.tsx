// Policies: whom they select, what their rules decided, which of them never did; of one node, or of all on a relay's page.

import { useEffect, useState } from 'preact/hooks';
import { get, pathOf, type PolicyUse, type Scope } from './api';
import type { Filter } from './scene';
import { count, plain } from './text';

/** How often the hit counts are asked for. */
const EVERY = 3000;

export function Policies({ filter, scope }: { filter: Filter; scope: Scope }) {
  const [policies, setPolicies] = useState<PolicyUse[] | null>(null);
  const [problem, setProblem] = useState('');
  const [open, setOpen] = useState('');
  const [unusedOnly, setUnusedOnly] = useState(false);
  useEffect(() => {
    let stopped = false;
    let timer = 0;
    const ask = () => get<PolicyUse[]>('policies')
      .then((list) => { if (!stopped) { setPolicies(list); setProblem(''); } }, (error: Error) => { if (!stopped) setProblem(error.message); })
      .finally(() => { if (!stopped) timer = window.setTimeout(ask, EVERY); });
    void ask();
    return () => { stopped = true; clearTimeout(timer); };
  }, []);
  if (problem) return <p class="notice warn">{plain(problem)}</p>;
  if (!policies) return <p class="empty">…</p>;
  const words = filter.text.trim().toLowerCase().split(/\s+/).filter(Boolean);
  const shown = policies.filter((p) =>
    (filter.namespace === '' || p.object.namespace === filter.namespace || p.object.namespace === '')
    && words.every((w) => `${p.object.kind} ${pathOf(p.object)} ${p.selects.join(' ')}`.toLowerCase().includes(w))
    && (!unusedOnly || unused(p) > 0 || p.selects.length === 0));
  return (
    <section class="policies" aria-label="Policies">
      <div class="flowbar">
        <span>{shown.length === policies.length ? `${policies.length} policies` : `${shown.length} of ${policies.length} policies`}</span>
        <label class="check"><input type="checkbox" checked={unusedOnly} onChange={(e) => setUnusedOnly(e.currentTarget.checked)} /> only with unused rules</label>
      </div>
      {policies.length === 0 && <p class="empty">No policy is loaded: everything is allowed.</p>}
      <ul class="cards">
        {shown.map((policy) => {
          const key = `${policy.object.kind} ${pathOf(policy.object)}`;
          return <Card key={key} policy={policy} scope={scope} open={open === key} toggle={() => setOpen(open === key ? '' : key)} />;
        })}
      </ul>
    </section>
  );
}

const hitsOf = (policy: PolicyUse): number => policy.rules.reduce((sum, rule) => sum + (rule.hits ?? 0), 0);
/** Rules that could have decided something here and never did. */
const unused = (policy: PolicyUse): number => (policy.selects.length === 0 ? 0 : policy.rules.filter((rule) => rule.hits === 0).length);

function Card({ policy, scope, open, toggle }: { policy: PolicyUse; scope: Scope; open: boolean; toggle(): void }) {
  const idle = unused(policy);
  return (
    <li class={open ? 'card open' : 'card'}>
      <button type="button" class="cardhead" aria-expanded={open} onClick={toggle}>
        <span class="name"><b>{plain(pathOf(policy.object))}</b><span class="muted">{policy.object.kind}</span></span>
        {policy.defaultDeny.length > 0 && <span class="tag">default deny {policy.defaultDeny.join(', ')}</span>}
        <span class={policy.selects.length ? 'num' : 'num warn'}>{policy.selects.length ? `selects ${policy.selects.length}` : scope === 'node' ? 'selects nothing here' : 'selects nothing'}</span>
        <span class="num">{count(hitsOf(policy))} hits</span>
        {idle > 0 && <span class="tag warn">{idle} unused</span>}
      </button>
      {open && <Inside policy={policy} scope={scope} />}
    </li>
  );
}

function Inside({ policy, scope }: { policy: PolicyUse; scope: Scope }) {
  const [text, setText] = useState<string | null>(null);
  const { kind, namespace, name } = policy.object;
  useEffect(() => {
    get<string>(`manifest/${kind}/${encodeURIComponent(namespace || '-')}/${encodeURIComponent(name)}`).then(setText, (error: Error) => setText(`# ${error.message}`));
  }, []);
  const most = Math.max(1, ...policy.rules.map((r) => r.hits ?? 0));
  return (
    <div class="inside">
      {policy.rules.length === 0 && <p class="muted">It has no rules{policy.defaultDeny.length > 0 && ': it only turns default deny on'}.</p>}
      {policy.rules.length > 0 && (
        <table>
          <thead><tr><th>Rule</th><th>Direction</th><th>Action</th><th class="num">Hits</th></tr></thead>
          <tbody>
            {policy.rules.map((rule) => (
              <tr key={rule.path + rule.direction + rule.action}>
                <td><code>{plain(rule.path)}</code></td><td>{rule.direction}</td>
                <td class={rule.action === 'deny' ? 'deny' : 'allow'}>{rule.action}</td>
                <td class="num">{rule.hits === null ? '?' : rule.hits === 0 ? <span class="muted">{rule.idle && policy.selects.length ? 'no peer matches' : 'never used'}</span> : <><meter min={0} max={most} value={rule.hits} aria-hidden="true" />{count(rule.hits)}</>}</td>
              </tr>
            ))}
          </tbody>
        </table>
      )}
      <p><b>Selects</b> {policy.selects.length ? policy.selects.slice(0, 30).map(plain).join(', ') : scope === 'node' ? 'no pod of this node' : 'no pod'}{policy.selects.length > 30 && ' …'}</p>
      {text && <pre tabIndex={0}>{text.split('\n').map(plain).join('\n')}</pre>}
    </div>
  );
}
