// One headless Chromium for a file of tests, and pages that tell everything that went wrong in them.

import { chromium } from 'playwright-core';

const executablePath = process.env.CHROMIUM ?? '/usr/bin/chromium';

export const url = process.env.SLUICE_UI;

export async function launch() {
  return chromium.launch({
    executablePath,
    // CI runs as root, where Chromium has no sandbox; it loads pages of this test alone.
    args: ['--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage'],
  });
}

/** A page with a list of its errors: exceptions, console errors, refused by the content policy, other hosts asked. */
export async function open(browser, { at = url, path = '/', ...options } = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 800 }, colorScheme: 'dark', ...options });
  const page = await context.newPage();
  const errors = [];
  page.on('pageerror', (error) => errors.push(`exception: ${error.message}`));
  page.on('console', (message) => { if (message.type() === 'error') errors.push(`console: ${message.text()}`); });
  page.on('dialog', (dialog) => { errors.push(`dialog: ${dialog.message()}`); void dialog.dismiss(); });
  page.on('request', (request) => { if (!request.url().startsWith(at)) errors.push(`other host: ${request.url()}`); });
  await page.addInitScript(() => {
    globalThis.violations = [];
    addEventListener('securitypolicyviolation', (event) => globalThis.violations.push(`${event.violatedDirective} ${event.blockedURI}`));
  });
  await page.goto(at + path);
  return { page, errors, close: () => context.close() };
}

/** Waits until the map shows nodes. */
export async function mapReady(page, nodes = 1) {
  await page.waitForFunction((n) => globalThis.sluiceScene?.nodesShown >= n, nodes);
}
