// The server's answers, and how they are asked for.

export interface About {
  version: string; cluster: string; nodes: string[]; health: string; trouble: string[];
  flowsSeen: number; flowsLost: number; scope: Scope;
}
/** Of how much of the cluster a page tells: an agent's of its node, a relay's of all. */
export type Scope = 'node' | 'cluster';
export interface NodeData { id: number; kind: NodeKind; namespace: string; name: string; pods: string[] }
export type NodeKind = 'workload' | 'machine' | 'name' | 'prefix' | 'reserved';
/** id, from, to, protocol, port, passed, dropped, last (ms), reason, [what, passed, refused] of L7 */
export type EdgeData = [number, number, number, string, number, number, number, number, string, [string, number, number][]];
export interface MapChange { cursor: string; whole: boolean; nodes: NodeData[]; edges: EdgeData[]; missed: number }
export interface Party { name: string; address: string; port: number | null; identity: number; pod: boolean }
export interface L7 {
  kind: 'http' | 'dns' | 'tls'; method?: string; path?: string; host?: string; status?: number;
  query?: string; type?: string; rcode?: string; serverName?: string | null; latencyUs?: number;
}
export interface FlowRow {
  time: number; verdict: string; direction: string; source: Party; destination: Party; protocol: string; summary: string;
  node: string; reply: boolean; policies: string[]; because: string; reason?: string; service?: string; l7?: L7; icmpType?: number;
}
export interface FlowBatch { rows: FlowRow[]; skipped: number; first: boolean }
export interface ObjectRef { kind: string; namespace: string; name: string }
export interface WhySide {
  direction: string; verdict: string; because: string; objects: ObjectRef[]; rules: string[]; nearMiss: string | null; node?: string;
}
export interface Suggestion { yaml: string | null; notes: string[]; verified: boolean }
export interface Why { verdict: string; sides: WhySide[]; suggestion: Suggestion | null; missing: string[] }
export interface RuleUse { path: string; direction: string; action: string; hits: number | null; idle: boolean }
export interface PolicyUse { object: ObjectRef; selects: string[]; defaultDeny: string[]; rules: RuleUse[] }
export interface Enforcement { defaultDeny: boolean; policies: ObjectRef[] }
export interface Governed { pod: string; identity: number; labels: string[]; ingress: Enforcement; egress: Enforcement }

/** An answer that is not 2xx. */
export class Refused extends Error {
  constructor(readonly status: number, message: string) { super(message); }
}

async function refusal(response: Response): Promise<Refused> {
  const text = await response.text().catch(() => '');
  let message = text || response.statusText;
  try { message = JSON.parse(text).error ?? message; } catch { /* plain text */ }
  return new Refused(response.status, message);
}

export async function get<T>(path: string, parameters: Record<string, string> = {}): Promise<T> {
  const query = new URLSearchParams(parameters).toString();
  const response = await fetch(`/api/v1/${path}${query ? `?${query}` : ''}`, { cache: 'no-store' });
  if (!response.ok) throw await refusal(response);
  return (response.headers.get('content-type')?.startsWith('application/json') ? response.json() : response.text()) as Promise<T>;
}

export async function login(token: string): Promise<void> {
  const response = await fetch('/login', { method: 'POST', body: token });
  if (!response.ok) throw await refusal(response);
}

export const pathOf = (object: ObjectRef): string => (object.namespace ? `${object.namespace}/${object.name}` : object.name);

/** What a flow is asked about: its addresses, and what a proxy refused. */
export function question(flow: FlowRow): Record<string, string> {
  const q: Record<string, string> = {
    from: flow.source.address, to: flow.destination.address,
    port: String(flow.destination.port ?? flow.icmpType ?? 0), protocol: flow.protocol,
  };
  if (flow.l7?.kind === 'http') {
    q['http-method'] = flow.l7.method ?? '';
    q['http-path'] = flow.l7.path ?? '';
    q['http-host'] = flow.l7.host ?? '';
  }
  if (flow.l7?.kind === 'dns') q['dns-query'] = flow.l7.query ?? '';
  if (flow.l7?.kind === 'tls' && flow.l7.serverName) q['server-name'] = flow.l7.serverName;
  return q;
}
