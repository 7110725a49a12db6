// The page with a synthetic cluster: what a person does with mouse, keys and a phone.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { launch, mapReady, open } from './browser.mjs';

let browser;
before(async () => { browser = await launch(); });
after(async () => { await browser.close(); });

async function clean({ page, errors, close }) {
  assert.deepEqual(await page.evaluate(() => globalThis.violations), []);
  assert.deepEqual(errors, []);
  await close();
}

test('the map shows workloads, the world and names, without an error or a request elsewhere', async () => {
  const view = await open(browser);
  await mapReady(view.page, 30);
  const kinds = await view.page.evaluate(() => [...new Set(globalThis.sluiceScene.model.nodes.map((n) => n.kind))].sort());
  assert.deepEqual(kinds, ['name', 'reserved', 'workload']);
  const drawn = await view.page.evaluate(() => {
    const canvas = document.querySelector('canvas.lower');
    const pixels = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
    return new Set(new Uint32Array(pixels.buffer)).size;
  });
  assert.ok(drawn > 50, `${drawn} colours are drawn`);
  await clean(view);
});

test('a click on a denied connection says why and what would allow it', async () => {
  const view = await open(browser);
  const { page } = view;
  await page.getByRole('complementary', { name: 'Denied connections' }).getByRole('button').first().click();
  const details = page.getByRole('complementary', { name: 'Details' });
  await details.getByText('by default deny: no rule matches').first().waitFor();
  await details.getByText('Closest rule:').first().waitFor();
  await details.getByText('tried in the engine').waitFor();
  assert.match(await details.locator('pre').first().innerText(), /kind: NetworkPolicy/);
  await page.keyboard.press('Escape');
  await details.waitFor({ state: 'detached' });
  await clean(view);
});

test('a click on an edge of the canvas selects it', async () => {
  const view = await open(browser);
  const { page } = view;
  await mapReady(page, 30);
  const place = await page.waitForFunction(() => {
    const scene = globalThis.sluiceScene;
    for (const pair of scene.model.pairs.values()) {
      if (pair.dropped === 0 || pair.from === pair.to || !pair.curve) continue;
      for (let i = 8; i <= 12; i++) {
        const [x, y] = scene.toScreen(pair.curve[i * 2], pair.curve[i * 2 + 1]);
        if (scene.at(x, y)?.pair === pair) return { x, y };
      }
    }
    return null;
  });
  const { x, y } = await place.jsonValue();
  const box = await page.locator('canvas.upper').boundingBox();
  await page.mouse.click(box.x + x, box.y + y);
  await page.getByRole('complementary', { name: 'Details' }).getByText('Why', { exact: true }).waitFor();
  await clean(view);
});

test('the flow table streams, filters on the server, and says what it does not understand', async () => {
  const view = await open(browser, { path: '/#flows' });
  const { page } = view;
  const rows = page.locator('.row');
  await rows.nth(10).waitFor();
  await page.getByRole('button', { name: 'Denied', exact: true }).click();
  await page.waitForFunction(() => {
    const rows = [...document.querySelectorAll('.row')];
    return rows.length > 3 && rows.every((row) => row.classList.contains('deny'));
  });
  await page.getByRole('searchbox', { name: 'Filter' }).fill('--to-port 5432');
  await page.waitForFunction(() => {
    const rows = [...document.querySelectorAll('.row')];
    return rows.length > 0 && rows.every((row) => row.textContent.includes(':5432'));
  });
  await page.getByRole('searchbox', { name: 'Filter' }).fill('prot=tcp');
  await page.getByRole('alert').getByText('unknown parameter').waitFor();
  await page.getByRole('searchbox', { name: 'Filter' }).fill('');
  await rows.nth(5).click();
  await page.getByRole('complementary', { name: 'Details' }).getByText('identity 300').first().waitFor();
  // Refused filters are answers, not errors of the page.
  view.errors = view.errors.filter((error) => !error.includes('400'));
  await clean(view);
});

test('only rows in sight are in the page', async () => {
  const view = await open(browser, { path: '/#flows' });
  const { page } = view;
  await page.waitForFunction(() => document.querySelector('.flowlist').getAttribute('aria-rowcount') > 300);
  assert.ok(await page.locator('.row').count() < 80);
  await page.getByRole('button', { name: 'Hold' }).click();
  await page.locator('.flowlist').evaluate((list) => { list.scrollTop = list.scrollHeight; });
  await page.waitForFunction(() => document.querySelector('.row:last-child') !== null && document.querySelectorAll('.row').length < 80);
  await page.getByRole('button', { name: /Go on \(/ }).click();
  await clean(view);
});

test('policies: whom they select, hits, and rules that never decided', async () => {
  const view = await open(browser, { path: '/#policies' });
  const { page } = view;
  await page.getByRole('button', { name: /shop\/intended/ }).click();
  await page.getByRole('cell', { name: '1234' }).waitFor();
  await page.getByText('1 unused').waitFor();
  await page.locator('pre').getByText('kind: NetworkPolicy').waitFor();
  await page.getByRole('checkbox').check();
  assert.equal(await page.locator('.card').count(), 1);
  await clean(view);
});

test('everything can be reached with keys', async () => {
  const view = await open(browser);
  const { page } = view;
  await mapReady(page, 30);
  await page.keyboard.press('2');
  await page.locator('.row').first().waitFor();
  await page.locator('.flowlist').focus();
  await page.keyboard.press('ArrowDown');
  await page.getByRole('complementary', { name: 'Details' }).waitFor();
  await page.keyboard.press('Escape');
  await page.keyboard.press('3');
  await page.locator('.card').first().waitFor();
  await page.keyboard.press('1');
  await page.locator('canvas.upper').focus();
  await page.keyboard.press('ArrowRight');
  const details = page.getByRole('complementary', { name: 'Details' });
  // Which node is next depends on what has spoken until now; nodes and the world have no policies.
  for (let tries = 0; tries < 20; tries++) {
    await page.keyboard.press(tries % 2 ? 'ArrowLeft' : 'ArrowDown');
    await page.keyboard.press('Enter');
    // The map is laid out anew while nodes come: where nothing was next, the next key finds something.
    const isShown = await details.waitFor({ timeout: 2000 }).then(() => true, () => false);
    if (isShown && (await details.locator('.kind').innerText()).startsWith('Workload')) break;
    await page.keyboard.press('Escape');
    await page.locator('canvas.upper').focus();
  }
  await details.getByText('Policies that select it').waitFor();
  await page.keyboard.press('Escape');
  await page.keyboard.press('?');
  await page.getByRole('heading', { name: 'Keys' }).waitFor();
  await page.keyboard.press('Escape');
  await page.keyboard.press('/');
  assert.equal(await page.evaluate(() => document.activeElement.type), 'search');
  await clean(view);
});

test('dark and light follow the system until one is chosen', async () => {
  for (const scheme of ['dark', 'light']) {
    const view = await open(browser, { colorScheme: scheme });
    const other = scheme === 'dark' ? 'light' : 'dark';
    const shows = (theme) => view.page.waitForFunction((theme) => document.documentElement.dataset.theme === theme, theme);
    await shows(scheme);
    // Nothing was chosen, by a first visit either: the page goes with the system.
    await view.page.emulateMedia({ colorScheme: other });
    await shows(other);
    await view.page.emulateMedia({ colorScheme: scheme });
    await shows(scheme);
    await view.page.getByRole('button', { name: 'Dark or light' }).click();
    await shows(other);
    // At once: a choice was lost when the page went before it was kept.
    await view.page.reload();
    await shows(other);
    await clean(view);
  }
});

test('on a phone nothing is wider than the screen and everything can be touched', async () => {
  const view = await open(browser, { viewport: { width: 375, height: 740 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 });
  const { page } = view;
  await mapReady(page, 30);
  for (const name of ['Map', 'Flows', 'Policies']) {
    await page.getByRole('link', { name }).tap();
    const wide = await page.evaluate(() => document.documentElement.scrollWidth);
    assert.ok(wide <= 375, `${name}: ${wide} px`);
  }
  await page.getByRole('link', { name: 'Flows' }).tap();
  await page.locator('.row').first().tap();
  await page.getByRole('complementary', { name: 'Details' }).getByText('Flow at').waitFor();
  await page.getByRole('button', { name: 'Close' }).tap();
  await clean(view);
});

test('text of traffic is never markup and hides nothing', async () => {
  const view = await open(browser, { path: '/#flows' });
  const { page } = view;
  await page.getByRole('searchbox', { name: 'Filter' }).fill('onerror');
  await page.locator('.row', { hasText: '<img src=x onerror=' }).first().click();
  const details = page.getByRole('complementary', { name: 'Details' });
  await details.locator('pre').waitFor();
  for (const place of [page.locator('.row').first(), details]) {
    const text = await place.innerText();
    assert.ok(text.includes('\\u{202e}') && text.includes('\\u{1b}[31m'), text);
    assert.ok(!/[\u202e\u001b]/.test(text));
  }
  assert.equal(await page.locator('.page img').count(), 1, 'the logo is the only image');
  assert.equal(await page.title(), 'sluice');
  await clean(view);
});
