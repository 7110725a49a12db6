import { useState } from 'preact/hooks';
import { login } from './api';
import { plain } from './text';

/** Asked for where the server has a token. */
export function Login({ done }: { done(): void }) {
  const [token, setToken] = useState('');
  const [problem, setProblem] = useState('');
  const submit = async (event: Event) => {
    event.preventDefault();
    try { await login(token); done(); } catch (error) { setProblem((error as Error).message); }
  };
  return (
    <form class="login" onSubmit={submit}>
      <h1><img src="/icon.svg" alt="" width="32" height="32" /> sluice</h1>
      <label>Token<input type="password" autocomplete="current-password" value={token} autofocus onInput={(e) => setToken(e.currentTarget.value)} /></label>
      <button type="submit" class="primary">Open</button>
      {problem && <p class="notice bad" role="alert">{plain(problem)}</p>}
      <p class="muted">It is in the file that <code>ui-token-file</code> names.</p>
    </form>
  );
}
