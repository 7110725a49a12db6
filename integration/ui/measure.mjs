// The page's bars: first paint and frames a second. node measure.mjs URL [SECONDS]
// Prints a table and, as the last line, JSON. Exits with 1 when a bar is missed.

import { launch } from './browser.mjs';

const [at, seconds = '10'] = process.argv.slice(2);
const browser = await launch();

async function once() {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, colorScheme: 'dark' });
  const page = await context.newPage();
  await page.goto(`${at}/`);
  await page.waitForFunction(() => performance.getEntriesByName('sluice-map').length > 0);
  const times = await page.evaluate(() => ({
    paint: performance.getEntriesByName('first-contentful-paint')[0]?.startTime ?? NaN,
    map: performance.getEntriesByName('sluice-map')[0].startTime,
    nodes: globalThis.sluiceScene.nodesShown,
    pairs: globalThis.sluiceScene.model.pairs.size,
    bytes: performance.getEntriesByType('resource').reduce((sum, r) => sum + r.transferSize, 0),
  }));
  return { page, times, close: () => context.close() };
}

/** Frames over a time, with the longest gap and the work in one. */
function frames(page, ms) {
  return page.evaluate((ms) => new Promise((done) => {
    const scene = globalThis.sluiceScene;
    const [drawn, busy] = scene ? [scene.frames, scene.busy] : [0, 0];
    const gaps = [];
    let last = performance.now();
    const begin = last;
    const tick = (now) => {
      gaps.push(now - last);
      last = now;
      if (now - begin < ms) { requestAnimationFrame(tick); return; }
      gaps.sort((a, b) => a - b);
      done({
        fps: (gaps.length * 1000) / (now - begin),
        p99: gaps[Math.floor(gaps.length * 0.99)],
        work: scene && scene.frames > drawn ? (scene.busy - busy) / (scene.frames - drawn) : 0,
      });
    };
    requestAnimationFrame(tick);
  }), ms);
}

const paints = [];
for (let i = 0; i < 5; i++) {
  const { times, close } = await once();
  paints.push(times);
  await close();
}
paints.sort((a, b) => a.map - b.map);
const first = paints[Math.floor(paints.length / 2)];
const { page, close } = await once();
await page.waitForTimeout(1500);
const ms = Number(seconds) * 1000;
const map = await frames(page, ms);
await page.evaluate(() => { location.hash = '#flows'; });
await page.locator('.row').nth(10).waitFor();
await page.waitForTimeout(500);
const table = await frames(page, ms);
await close();
await browser.close();

const rows = [
  ['first contentful paint', `${first.paint.toFixed(0)} ms`, '<= 1000 ms', first.paint <= 1000],
  [`the map is drawn (${first.nodes} nodes, ${first.pairs} edges)`, `${first.map.toFixed(0)} ms`, '<= 1000 ms', first.map <= 1000],
  ['frames a second, map', `${map.fps.toFixed(1)} (p99 gap ${map.p99.toFixed(0)} ms, ${map.work.toFixed(2)} ms a frame)`, '>= 58', map.fps >= 58],
  ['frames a second, table', `${table.fps.toFixed(1)} (p99 gap ${table.p99.toFixed(0)} ms)`, '>= 58', table.fps >= 58],
  ['bytes of the page', String(first.bytes), '', true],
];
for (const [what, value, bar, met] of rows) console.log(`${met ? 'met   ' : 'MISSED'}  ${what.padEnd(46)} ${value.padEnd(44)} ${bar}`);
console.log(JSON.stringify({ first, map, table }));
process.exit(rows.every(([, , , met]) => met) ? 0 : 1);
