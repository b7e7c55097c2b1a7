"""The browser that the other tests use: threads are possible, and WebGPU computes."""

from __future__ import annotations

_ISOLATED = "export default async (given) => [given, crossOriginIsolated]"
_DOUBLED = """
export default async (values) => {
  const adapter = await navigator.gpu.requestAdapter();
  const device = await adapter.requestDevice();
  const code = `@group(0) @binding(0) var<storage, read_write> x: array<f32>;
    @compute @workgroup_size(1) fn main(@builtin(global_invocation_id) i: vec3u) {
      x[i.x] = 2 * x[i.x]; }`;
  const module = device.createShaderModule({ code });
  const pipeline = device.createComputePipeline({ layout: "auto", compute: { module } });
  const size = 4 * values.length;
  const usage = GPUBufferUsage.STORAGE | GPUBufferUsage.COPY_SRC | GPUBufferUsage.COPY_DST;
  const buffer = device.createBuffer({ size, usage });
  const reading = GPUBufferUsage.MAP_READ | GPUBufferUsage.COPY_DST;
  const back = device.createBuffer({ size, usage: reading });
  device.queue.writeBuffer(buffer, 0, new Float32Array(values));
  const encoder = device.createCommandEncoder();
  const pass = encoder.beginComputePass();
  pass.setPipeline(pipeline);
  pass.setBindGroup(0, device.createBindGroup({
    layout: pipeline.getBindGroupLayout(0), entries: [{ binding: 0, resource: { buffer } }] }));
  pass.dispatchWorkgroups(values.length);
  pass.end();
  encoder.copyBufferToBuffer(buffer, 0, back, 0, size);
  device.queue.submit([encoder.finish()]);
  await back.mapAsync(GPUMapMode.READ);
  return [...new Float32Array(back.getMappedRange())];
};
"""


def test_a_script_runs_isolated(browser, tmp_path):
    visit = browser.visit(tmp_path, _ISOLATED, {"a": 1})
    assert visit.result == [{"a": 1}, True]
    assert visit.errors == []


def test_webgpu_computes(browser, tmp_path):
    assert browser.visit(tmp_path, _DOUBLED, [1, 2.5], webgpu=True).result == [2, 5]
