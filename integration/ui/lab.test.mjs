// The whole: real packets, real agents, their pages through `sluice lab ui`, and the suggestion applied.

import assert from 'node:assert/strict';
import { spawn } from 'node:child_process';
import { after, before, test } from 'node:test';
import { launch, open } from './browser.mjs';

const { SLUICE_LAB: lab, SLUICE_LAB_SOCKET: socket, SLUICE_LAB_PAGES: pages, SLUICE_PROGRAM: sluice } = process.env;

function run(args, input = '') {
  return new Promise((done) => {
    const child = spawn(sluice, args, { stdio: ['pipe', 'pipe', 'inherit'] });
    let text = '';
    child.stdout.on('data', (chunk) => { text += chunk; });
    child.on('close', (code) => done({ code, text }));
    child.stdin.end(input);
  });
}

let browser;
before(async () => { browser = await launch(); });
after(async () => { await browser.close(); });

test('a denied connection of a real lab is explained, and the suggested policy opens it', async () => {
  const topology = JSON.parse((await run(['lab', 'status', lab, '-o', 'json'])).text);
  const backend = topology.pods.find((pod) => pod.name === 'backend').addresses.find((address) => address.includes('.'));
  const fetches = () => run(['lab', 'exec', '--name', lab, 'shop/db', '--', 'curl', '-s', '-o', '/dev/null', '-m', '1', `http://${backend}:8080/`]);
  assert.notEqual((await fetches()).code, 0);
  // Pods db and backend live on the second node.
  const { page, errors, close } = await open(browser, { at: pages.split(' ')[1] });
  await page.getByRole('complementary', { name: 'Denied connections' }).getByRole('button', { name: /shop\/db to shop\/backend/ }).click();
  const details = page.getByRole('complementary', { name: 'Details' });
  await details.getByText('tried in the engine').waitFor();
  await details.getByText('shop/default-deny').first().waitFor();
  await details.getByText(/Closest rule: .*shop\/backend-in/).first().waitFor();
  const yaml = await details.locator('.suggestion pre').innerText();
  assert.equal(yaml.match(/kind: NetworkPolicy/g).length, 2, yaml);
  const applied = await run(['policy', 'apply', '--socket', socket, '-'], yaml);
  assert.equal(applied.code, 0, applied.text);
  for (const deadline = Date.now() + 15_000; (await fetches()).code !== 0;) assert.ok(Date.now() < deadline, 'still denied');
  await page.keyboard.press('Escape');
  await page.waitForFunction(() => [...globalThis.sluiceScene.model.pairs.values()].some((pair) =>
    pair.from.name === 'db' && pair.to.name === 'backend' && pair.passed > 0));
  await page.getByRole('link', { name: 'Policies' }).click();
  await page.getByRole('button', { name: /shop\/allow-db-to-backend-8080/ }).click();
  await page.getByRole('cell', { name: 'spec.egress[0]' }).waitFor();
  assert.deepEqual(errors, []);
  await close();
});
