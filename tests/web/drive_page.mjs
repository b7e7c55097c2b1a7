// Does to a page what a person does, step by step: [verb, ...]; returns what `see` and its kin saw.
import { mkdirSync } from "node:fs";
import { join } from "node:path";

const verbs = {
  open: async (page, url) => {
    await page.goto(url);
    await page.waitForFunction("window.adaptool");
    return page.evaluate("adaptool.ready");
  },
  look: async (page, url) => void (await page.goto(url)),
  type: async (page, url, text) => void (await page.keyboard.type(text)),
  press: async (page, url, key, times = 1) => {
    for (let i = 0; i < times; i += 1) await page.keyboard.press(key);
  },
  hold: async (page, url, key, other) => {
    await page.keyboard.down(key);
    await page.keyboard.press(other);
    await page.keyboard.up(key);
  },
  click: async (page, url, id) => void (await page.click(`#${id}`)),
  choose: async (page, url, id, value) => void (await page.select(`#${id}`, value)),
  answered: async (page, url, times) => {
    await page.waitForFunction((n) => Number(document.body.dataset.answers ?? 0) === n, {}, times);
  },
  until: async (page, url, expression) => void (await page.waitForFunction(expression)),
  see: (page, url, id) => page.$eval(`#${id}`, (found) => found.textContent),
  find: (page, url, expression) => page.evaluate(expression),
  focused: (page) => page.evaluate("document.activeElement.id"),
  names: async (page) => {
    const all = [];
    const walk = (node) => {
      all.push([node.role, node.name ?? ""]);
      node.children?.forEach(walk);
    };
    walk(await page.accessibility.snapshot());
    return all;
  },
  dark: async (page, url, is) => {
    const value = is ? "dark" : "light";
    await page.emulateMediaFeatures([{ name: "prefers-color-scheme", value }]);
  },
  shot: async (page, url, folder, name) => {
    mkdirSync(folder, { recursive: true });
    await page.screenshot({ path: join(folder, name), fullPage: true });
  },
};

export default async (page, steps, url) => {
  page.setDefaultTimeout(120_000);
  const seen = [];
  for (const [verb, ...rest] of steps) {
    const result = await verbs[verb](page, url, ...rest);
    if (result !== undefined) seen.push(result);
  }
  return seen;
};
