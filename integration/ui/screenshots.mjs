// Pictures of the page, for eyes: node screenshots.mjs URL DIRECTORY

import { mkdir } from 'node:fs/promises';
import { launch, mapReady, open } from './browser.mjs';

const [at, directory] = process.argv.slice(2);
await mkdir(directory, { recursive: true });
const browser = await launch();
const shot = (page, name) => page.screenshot({ path: `${directory}/${name}.png` });
const phone = { viewport: { width: 390, height: 780 }, hasTouch: true, isMobile: true, deviceScaleFactor: 2 };

for (const [name, options] of [['dark', {}], ['light', { colorScheme: 'light' }], ['phone', phone]]) {
  const { page, errors, close } = await open(browser, { at, path: '/', ...options });
  await mapReady(page);
  await page.waitForTimeout(1500);
  await shot(page, `${name}-map`);
  const denied = page.locator('.deniedlist button').first();
  if (await denied.count()) {
    await denied.click();
    await page.locator('.why h3').first().waitFor();
    await page.waitForTimeout(400);
    await shot(page, `${name}-why`);
  }
  await page.keyboard.press('Escape');
  await page.evaluate(() => {
    const scene = globalThis.sluiceScene;
    const node = [...scene.model.nodes].filter(Boolean).sort((a, b) => b.pairs.length - a.pairs.length)[0];
    scene.hovered = { node };
    scene.changed();
  });
  await page.waitForTimeout(300);
  await shot(page, `${name}-focus`);
  await page.goto(`${at}/#flows`);
  await page.locator('.row').nth(8).waitFor();
  await page.waitForTimeout(600);
  await page.locator('.row.deny').first().click();
  await page.waitForTimeout(500);
  await shot(page, `${name}-flows`);
  await page.keyboard.press('Escape');
  await page.goto(`${at}/#policies`);
  await page.locator('.card').last().waitFor();
  await page.locator('.cardhead').last().click();
  await page.waitForTimeout(400);
  await shot(page, `${name}-policies`);
  if (name === 'dark') {
    await page.keyboard.press('?');
    await page.waitForTimeout(200);
    await shot(page, 'dark-help');
  }
  if (errors.length) console.error(name, errors);
  await close();
}
await browser.close();
