// Runs a model in ONNX Runtime Web (WASM): a plan as JSON comes in, outputs go out.
import { readFileSync } from "node:fs";
import * as ort from "onnxruntime-web";
import { readAdapter } from "./adapter.mjs";

ort.env.wasm.numThreads = 1;
ort.env.logLevel = "error";
const bytes = (path) => new Uint8Array(readFileSync(path));
const plan = JSON.parse(readFileSync(0, "utf8"));

const feeds = {};
for (const [name, { type, dims, values }] of Object.entries(plan.feeds)) {
  const data = type === "int64" ? BigInt64Array.from(values, BigInt) : Float32Array.from(values);
  feeds[name] = new ort.Tensor(type, data, dims);
}

const results = [];
let names = [];
for (const { data, runs } of plan.sessions) {
  const externalData = data.map(({ path, file }) => ({ path, data: bytes(file) }));
  const session = await ort.InferenceSession.create(bytes(plan.model), {
    executionProviders: ["wasm"],
    externalData,
  });
  names = session.inputNames;
  for (const { adapter, scale } of runs) {
    const factors = adapter ? readAdapter(bytes(adapter), ort) : {};
    if (scale !== null) factors.lora_scale = new ort.Tensor("float32", [scale], []);
    const outputs = await session.run({ ...feeds, ...factors }, [plan.output]);
    results.push(Array.from(outputs[plan.output].data));
  }
  await session.release();
}
console.log(JSON.stringify({ names: [...names], results }));
