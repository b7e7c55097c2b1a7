// One visit of headless Chromium: a plan as JSON comes in, what the visit gave goes out.
//
// plan.root      folder that is served at /, with the headers that threads need
// plan.npm       node_modules, served at /npm/
// plan.url       or: where a page is served already
// plan.imports   import map of the blank page
// plan.script    module for the page: export default async (argument) => result
// plan.drive     or: module for node: export default async (page, argument, url) => result
// plan.argument  handed to either
// plan.webgpu    let Chromium compute WebGPU in software
// plan.size      [width, height]
import { createReadStream, existsSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { extname, join, normalize } from "node:path";
import { pathToFileURL } from "node:url";

let text = "";
for await (const piece of process.stdin) text += piece;
const plan = JSON.parse(text);
const require = createRequire(join(plan.npm, "x.js"));
const puppeteer = (await import(pathToFileURL(require.resolve("puppeteer-core")))).default;

const TYPES = {
  ".html": "text/html", ".js": "text/javascript", ".mjs": "text/javascript",
  ".wasm": "application/wasm", ".json": "application/json", ".css": "text/css",
};
const HEADERS = {
  "Cross-Origin-Opener-Policy": "same-origin", "Cross-Origin-Embedder-Policy": "require-corp",
  "Cross-Origin-Resource-Policy": "same-origin", "Cache-Control": "no-store",
};
const own = {
  "/__blank__.html": ["text/html", `<!doctype html><link rel="icon" href="data:,">
<script type="importmap">${JSON.stringify({ imports: plan.imports ?? {} })}</script>`],
  "/__script__.mjs": ["text/javascript", plan.script ?? ""],
};

function answer(request, response) {
  const path = decodeURIComponent(new URL(request.url, "http://x").pathname);
  if (own[path]) {
    response.writeHead(200, { ...HEADERS, "Content-Type": own[path][0] });
    return response.end(own[path][1]);
  }
  const npm = path.startsWith("/npm/");
  const file = normalize(join(npm ? plan.npm : plan.root, npm ? path.slice(5) : path));
  if (!existsSync(file) || !statSync(file).isFile()) {
    response.writeHead(404, HEADERS);
    return response.end();
  }
  const type = TYPES[extname(file)] ?? "application/octet-stream";
  const length = statSync(file).size;
  response.writeHead(200, { ...HEADERS, "Content-Type": type, "Content-Length": length });
  createReadStream(file).pipe(response);
}

const server = plan.url ? null : createServer(answer);
if (server) await new Promise((done) => server.listen(0, "127.0.0.1", done));
const url = plan.url ?? `http://127.0.0.1:${server.address().port}/`;
const flags = [
  "--no-sandbox", "--disable-quic", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
];
if (plan.webgpu) flags.push("--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader");
const browser = await puppeteer.launch({
  executablePath: plan.chromium, headless: true, args: flags, protocolTimeout: plan.timeout * 1000,
});
const errors = [];
const requests = [];
let outcome;
try {
  const page = await browser.newPage();
  const [width, height] = plan.size ?? [1000, 800];
  await page.setViewport({ width, height });
  page.on("console", (message) => message.type() === "error" && errors.push(message.text()));
  page.on("pageerror", (error) => errors.push(String(error)));
  page.on("request", (request) => requests.push(request.url()));
  if (plan.drive) {
    const drive = (await import(pathToFileURL(plan.drive))).default;
    outcome = { result: (await drive(page, plan.argument, url)) ?? null };
  } else {
    await page.goto(`${url}__blank__.html`);
    outcome = await page.evaluate(async (argument) => {
      try {
        const script = await import("/__script__.mjs");
        return { result: (await script.default(argument)) ?? null };
      } catch (error) {
        return { failure: error?.stack || error?.message || String(error) };
      }
    }, plan.argument ?? null);
  }
} catch (error) {
  outcome = { failure: error.stack };
} finally {
  await browser.close();
  server?.close();
}
process.stdout.write(JSON.stringify({ ...outcome, errors, requests }));
