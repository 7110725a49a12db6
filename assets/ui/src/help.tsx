import { useEffect, useRef } from 'preact/hooks';

const KEYS: [string, string][] = [
  ['1 2 3', 'map, flows, policies'], ['/', 'filter'], ['d', 'only what is denied'], ['t', 'dark or light'], ['Esc', 'close'],
  ['← ↑ ↓ →', 'map: from node to node'], ['Enter', 'map: details'], ['+ − 0', 'map: nearer, farther, everything'], ['↑ ↓', 'flows: from row to row'], ['Space', 'flows: hold still, go on'],
];
const FILTERS: [string, string][] = [
  ['pod=shop/front', 'pods by namespace and beginning of the name; from-pod, to-pod one end'],
  ['namespace=shop', 'also from-, to-'], ['port=8080', 'also ip, identity, label, fqdn, node'],
  ['protocol=http', 'tcp, udp, sctp, icmp, http, dns, tls'], ['type=l7', 'drop, policy-verdict, trace, l7'],
  ['policy=shop/deny', 'decided by this object'], ['on-node=node1', 'seen by this node'], ['not-port=53', 'not- excludes'], ['frontend', 'words: rows that contain them'],
];

export function Help({ close }: { close(): void }) {
  const dialog = useRef<HTMLDialogElement>(null);
  useEffect(() => {
    dialog.current!.addEventListener('close', close);
    dialog.current!.showModal();
  }, []);
  return (
    <dialog ref={dialog} class="help" onClick={(e) => { if (e.target === dialog.current) dialog.current?.close(); }}>
      <h2>Keys</h2>
      <dl>{KEYS.map(([key, what]) => <><dt><kbd>{key}</kbd></dt><dd>{what}</dd></>)}</dl>
      <h2>Filters of the flow table</h2>
      <p class="muted">As <code>sluice observe</code> has them. Repeated: any of them. Different ones: all of them.</p>
      <dl>{FILTERS.map(([key, what]) => <><dt><code>{key}</code></dt><dd>{what}</dd></>)}</dl>
      <form method="dialog"><button type="submit" class="primary">Close</button></form>
    </dialog>
  );
}
