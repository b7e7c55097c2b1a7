// The page's link to @mlc-ai/web-llm, which runs MLC weights on WebGPU with a compiled library.
//
// app-config.json says where both lie. The library is looked for in ./library/ before the address
// of the published one is tried.
import { CreateMLCEngine, deleteModelAllInfoInCache } from "@mlc-ai/web-llm";

const MARK = "adaptool:"; // of what this page keeps in the browser's storage

export async function open(settings, { progress }) {
  if (!(await navigator.gpu?.requestAdapter())) {
    throw new Error("This browser has no WebGPU, which @mlc-ai/web-llm needs");
  }
  const appConfig = await configured(settings);
  const [{ model_id: id, model }] = appConfig.model_list;
  await forgetFormer(id, new URL("resolve/main/tensor-cache.json", model), appConfig);
  const engine = await CreateMLCEngine(id, {
    appConfig,
    initProgressCallback: (report) => progress(report.progress, report.text),
  });
  return {
    adapters: [], // they are merged
    device: "WebGPU",
    answer: (prompt, options) => answer(engine, prompt, options),
  };
}

async function answer(engine, prompt, { token, signal, maxTokens }) {
  signal?.throwIfAborted();
  const stop = () => engine.interruptGenerate();
  signal?.addEventListener("abort", stop, { once: true });
  let text = "";
  let tokens = 0;
  try {
    await engine.resetChat(); // every question is the first of a conversation
    const chunks = await engine.chat.completions.create({
      messages: [{ role: "user", content: prompt }],
      temperature: 0,
      max_tokens: maxTokens,
      stream: true,
      stream_options: { include_usage: true },
    });
    for await (const chunk of chunks) {
      tokens = chunk.usage?.completion_tokens ?? tokens;
      const piece = chunk.choices[0]?.delta.content ?? "";
      if (!piece) continue;
      text += piece;
      if (!chunk.usage) tokens += 1;
      token?.(text);
    }
  } finally {
    signal?.removeEventListener("abort", stop);
  }
  signal?.throwIfAborted();
  return { text, tokens };
}

/** app-config.json with the addresses that this page has. */
async function configured({ base, library }) {
  const response = await fetch(new URL("app-config.json", base));
  if (!response.ok) throw new Error(`app-config.json: ${response.status} ${response.statusText}`);
  const { model_list: [record] } = await response.json();
  const local = library && new URL(`library/${encodeURIComponent(library)}`, base);
  if (!record.model_lib) {
    throw new Error("No compiled library is known for this model: export it with --lib model.wasm");
  }
  const isHere = local && (await fetch(local, { method: "HEAD" })).ok;
  if (!isHere && new URL(record.model_lib, base).origin !== new URL(base).origin) {
    throw new Error(`${library} is missing: put it into the folder library/, from ${record.model_lib}`);
  }
  const address = isHere ? local : new URL(record.model_lib, base);
  return { model_list: [{ ...record, model: base, model_lib: address.href }] };
}

/** WebLLM keeps what it has loaded by address: another export at the same one must not get it. */
async function forgetFormer(id, list, appConfig) {
  const response = await fetch(list, { cache: "no-cache" });
  if (!response.ok) throw new Error(`${list.pathname}: ${response.status} ${response.statusText}`);
  const digest = await crypto.subtle.digest("SHA-256", await response.arrayBuffer());
  const state = Array.from(new Uint8Array(digest), (byte) => byte.toString(16)).join(" ");
  const key = MARK + list.href;
  if (localStorage.getItem(key) !== state) await deleteModelAllInfoInCache(id, appConfig);
  localStorage.setItem(key, state);
}
