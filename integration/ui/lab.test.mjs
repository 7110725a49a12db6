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

/** The IPv4 address of pod shop/backend. */
async function backendAddress() {
  const topology = JSON.parse((await run(['lab', 'status', lab, '-o', 'json'])).text);
  return topology.pods.find((pod) => pod.name === 'backend').addresses.find((address) => address.includes('.'));
}

test('a denied connection of a real lab is explained, and the suggested policy opens it', async () => {
  const backend = await backendAddress();
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

test('a relay shows the flows of all nodes, and asks them why', async () => {
  const { page, errors, close } = await open(browser, { at: pages.split(' ').at(-1) });
  const backend = await backendAddress();
  const call = () => run(['lab', 'exec', '--name', lab, 'shop/frontend', '--', 'curl', '-s', '-o', '/dev/null', '-m', '2', `http://${backend}:8080/`]);
  await page.getByText('2 nodes', { exact: true }).waitFor();
  await page.getByRole('link', { name: 'Flows' }).click();
  for (const deadline = Date.now() + 15_000; ;) {
    const { code } = await call();
    if (code === 0) break;
    assert.ok(Date.now() < deadline, `curl ends with ${code}`);
  }
  // Pod frontend lives on the first node, backend on the second: both tell of the connection.
  const rows = page.getByRole('row').filter({ hasText: 'shop/frontend' }).filter({ hasText: 'shop/backend' });
  for (const node of ['node1', 'node2']) await rows.filter({ has: page.getByRole('gridcell', { name: node, exact: true }) }).first().waitFor();
  await page.getByLabel('Node', { exact: true }).selectOption('node2');
  await page.waitForFunction(() => {
    const rows = [...document.querySelectorAll('.row')];
    return rows.length > 0 && rows.every((row) => row.children[1].textContent === 'node2');
  });
  await rows.first().click();
  const details = page.getByRole('complementary', { name: 'Details' });
  await details.getByText(/by rules, on node1/).waitFor();
  await details.getByText(/by rules, on node2/).waitFor();
  await page.keyboard.press('Escape');
  await page.getByRole('link', { name: 'Policies' }).click();
  await page.getByRole('button', { name: /shop\/default-deny.*selects 3/ }).waitFor();
  await page.getByRole('button', { name: /shop\/backend-in/ }).click();
  await page.getByRole('cell', { name: 'spec.ingress[0]' }).waitFor();
  await page.getByRole('link', { name: 'Map' }).click();
  await page.waitForFunction(() => [...globalThis.sluiceScene.model.pairs.values()].some((pair) =>
    pair.from.name === 'frontend' && pair.to.name === 'backend' && pair.passed > 0));
  // Denied at its source's node already: the other side is asked all the same, and both are opened at once.
  const other = () => run(['lab', 'exec', '--name', lab, 'shop/frontend', '--', 'curl', '-s', '-o', '/dev/null', '-m', '1', `http://${backend}:8081/`]);
  assert.equal((await other()).code, 28);
  await page.getByRole('complementary', { name: 'Denied connections' }).getByRole('button', { name: /shop\/frontend to shop\/backend/ }).click();
  await details.getByText(/by default deny.*, on node1/).waitFor();
  await details.getByText(/by default deny.*, on node2/).waitFor();
  await details.getByText('tried in the engine').waitFor();
  const yaml = await details.locator('.suggestion pre').innerText();
  assert.equal(yaml.match(/kind: NetworkPolicy/g).length, 2, yaml);
  assert.equal((await run(['policy', 'apply', '--socket', socket, '-'], yaml)).code, 0);
  // Nothing listens there: a reset comes back as soon as the connection is allowed.
  for (const deadline = Date.now() + 15_000; (await other()).code !== 7;) assert.ok(Date.now() < deadline, 'still denied');
  assert.deepEqual(await page.evaluate(() => globalThis.violations), []);
  assert.deepEqual(errors, []);
  await close();
});
