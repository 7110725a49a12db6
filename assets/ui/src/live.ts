// The stream of server-sent events, read with fetch so that refusals have words; it connects again by itself.

import { Refused, type About, type FlowBatch, type MapChange } from './api';

export interface Handlers {
  about(about: About): void;
  map(change: MapChange): void;
  flows(batch: FlowBatch): void;
  /** `null`: connected. */
  trouble(problem: Refused | Error | null): void;
}

/** Starts the stream; the result ends it. */
export function live(filter: [string, string][], rows: boolean, cursor: () => string, on: Handlers): () => void {
  const abort = new AbortController();
  const run = async () => {
    let pause = 250;
    while (!abort.signal.aborted) {
      try {
        const parameters = new URLSearchParams(filter);
        if (cursor()) parameters.set('cursor', cursor());
        if (!rows) parameters.set('rows', 'off');
        const response = await fetch(`/api/v1/live?${parameters}`, { signal: abort.signal, cache: 'no-store' });
        if (!response.ok || !response.body) {
          let message = response.statusText;
          try { message = (await response.json()).error; } catch { /* no words */ }
          throw new Refused(response.status, message);
        }
        on.trouble(null);
        pause = 250;
        await read(response.body, abort.signal, on);
      } catch (error) {
        if (abort.signal.aborted) return;
        on.trouble(error as Error);
        // What was refused is refused again: a new filter or token starts a new stream.
        if (error instanceof Refused && error.status < 500) return;
      }
      await new Promise((done) => setTimeout(done, pause));
      pause = Math.min(pause * 2, 5000);
    }
  };
  void run();
  return () => abort.abort();
}

async function read(body: ReadableStream<Uint8Array>, signal: AbortSignal, on: Handlers): Promise<void> {
  const reader = body.pipeThrough(new TextDecoderStream() as ReadableWritablePair<string, Uint8Array>).getReader();
  let buffer = '';
  for (;;) {
    const { done, value } = await reader.read();
    if (done || signal.aborted) return;
    buffer += value;
    for (let end = buffer.indexOf('\n\n'); end >= 0; end = buffer.indexOf('\n\n')) {
      const block = buffer.slice(0, end);
      buffer = buffer.slice(end + 2);
      const name = /^event: (\w+)$/m.exec(block)?.[1];
      const at = block.indexOf('data: ');
      if (!name || at < 0) continue;
      const data = JSON.parse(block.slice(at + 6));
      if (name === 'about') on.about(data as About);
      if (name === 'map') on.map(data as MapChange);
      if (name === 'flows') on.flows(data as FlowBatch);
    }
  }
}
