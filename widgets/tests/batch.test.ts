import { afterEach, beforeEach, expect, test, vi } from "vitest";
import batch from "../src/batch";
import { FakeModel, delta, row, snapshot } from "./fakes";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => {
  vi.restoreAllMocks();
  vi.useRealTimers();
  document.body.replaceChildren();
});

function open(model: FakeModel): { element: HTMLElement; close: () => void; dispose: () => void } {
  const widget = batch();
  const el = document.createElement("div");
  document.body.append(el);
  const dispose = widget.initialize({ model });
  const close = widget.render({ model, el });
  return { element: el, close, dispose };
}

function texts(element: Element, selector: string): string[] {
  return Array.from(element.querySelectorAll(selector), (found) => found.textContent ?? "");
}

/** Let the next frame be drawn. */
async function drawn(): Promise<void> {
  await vi.advanceTimersByTimeAsync(50);
}

test("draws what the model saved", () => {
  const { element } = open(new FakeModel(snapshot()));
  expect(texts(element, ".qnb-head > *")[0]).toBe("simulate");
  expect(texts(element, ".qnb-head > *")[1]).toBe("3 of 10 · 30 %");
  expect(texts(element, ".qnb-pace")).toEqual(["4.2/s · 3.0 s · about 6 s left"]);
  expect(texts(element, ".qnb-legend li")).toEqual(["2done", "1failed", "1running", "6queued"]);
  expect(texts(element, ".qnb-failures li")).toEqual(["ValueError×\u20091no"]);
  expect(texts(element, "th")).toEqual(["call", "seed", "side", "result", "state", "time", "worker"]);
  expect(texts(element, "tbody tr:nth-child(3) td")).toEqual(["2", "2", "'left'", "ValueError: no", "failed", "250 ms", "here-0"]);
  expect(texts(element, ".qnb-foot")).toEqual(["4 of 10 rows, the last that changed"]);
});

test("says what it is to those who do not see it", () => {
  const { element } = open(new FakeModel(snapshot()));
  const bar = element.querySelector("[role=progressbar]")!;
  expect(bar.getAttribute("aria-valuenow")).toBe("3");
  expect(bar.getAttribute("aria-valuemax")).toBe("10");
  expect(bar.getAttribute("aria-valuetext")).toBe("30 %, 3 of 10 calls");
  expect(element.querySelector("section")!.getAttribute("aria-label")).toBe("Batch simulate");
  expect(element.querySelectorAll("th[scope=col]")).toHaveLength(7);
});

test("follows the kernel, one frame for many messages", async () => {
  const model = new FakeModel(snapshot());
  const { element } = open(model);
  const frames = vi.spyOn(globalThis, "requestAnimationFrame");
  for (let seq = 1; seq <= 5; seq++) model.tell(delta(seq));
  expect(frames).toHaveBeenCalledTimes(1);
  await drawn();
  expect(texts(element, ".qnb-head > *")[1]).toBe("4 of 10 · 40 %");
});

test("numbers stand right, text left, and a column never shrinks", async () => {
  const model = new FakeModel(snapshot());
  const { element } = open(model);
  const heads = [...element.querySelectorAll("th")];
  const right = heads.filter((head) => head.classList.contains("qnb-number")).map((head) => head.textContent);
  expect(right).toEqual(["call", "seed", "time"]);
  const before = heads[3]!.style.minWidth;
  expect(before).toBe("14ch");
  model.tell(delta(1, { rows: [row(0), row(1), row(2), row(3)] }));
  await drawn();
  expect(heads[3]!.style.minWidth).toBe(before);
});

test("markup in values stays text", () => {
  const bad = "<img src=x onerror=alert(1)>";
  const { element } = open(new FakeModel(snapshot({ name: bad, rows: [row(0, 4, bad)], failures: [[bad, 1, bad]] })));
  expect(element.querySelector("img")).toBeNull();
  expect(element.querySelector("td.qnb-of-result")!.textContent).toBe(bad);
});

test("the cancel button waits, is heard, or says that the kernel is busy", async () => {
  const model = new FakeModel(snapshot());
  const { element } = open(model);
  const button = element.querySelector("button")!;
  button.click();
  await vi.advanceTimersByTimeAsync(10);
  expect(button.disabled).toBe(true);
  await vi.advanceTimersByTimeAsync(1500);
  expect(texts(element, ".qnb-note")[0]).toMatch(/^The kernel is busy.*■/);
  button.click();
  model.tell({ kind: "ack", id: model.said("cancel")[1]!.id as string });
  await vi.advanceTimersByTimeAsync(10);
  expect(texts(element, ".qnb-note")[0]).toMatch(/^Cancelling/);
});

test("a kernel that falls silent is told of", async () => {
  const model = new FakeModel(snapshot());
  const { element } = open(model);
  await vi.advanceTimersByTimeAsync(6000);
  expect(element.querySelector<HTMLElement>(".qnb-note")!.hidden).toBe(true);
  await vi.advanceTimersByTimeAsync(3000);
  expect(texts(element, ".qnb-note")[0]).toMatch(/^No news from the kernel for/);
});

test("at the end there is no button, no clock and no note", async () => {
  const model = new FakeModel(snapshot());
  const { element } = open(model);
  const end = { counts: [0, 0, 0, 0, 9, 1, 0, 0], over: true, elapsed: 12.3, eta: null };
  model.set(snapshot({ ...end, seq: 1 }));
  await drawn();
  expect(element.querySelector("button")!.hidden).toBe(true);
  expect(texts(element, ".qnb-pace")).toEqual(["in 12 s · 49/min"]);
  expect(texts(element, ".qnb-head > *")[1]).toBe("10 calls");
  await vi.advanceTimersByTimeAsync(60_000);
  expect(texts(element, ".qnb-note")).toEqual([""]);
});

test("says when it comes and goes, and leaves nothing behind", async () => {
  const onDocument = vi.spyOn(document, "addEventListener");
  const offDocument = vi.spyOn(document, "removeEventListener");
  const model = new FakeModel(snapshot());
  const { close, dispose } = open(model);
  expect(model.said("ready")).toHaveLength(1);
  model.tell(delta(1));
  close();
  expect(model.said("gone")[0]!.view).toBe(model.said("ready")[0]!.view);
  dispose();
  expect(model.listeners).toBe(0);
  expect(offDocument.mock.calls.length).toBe(onDocument.mock.calls.length);
  expect(vi.getTimerCount()).toBe(0);
});

test("two views of one model are fed by one channel", async () => {
  const model = new FakeModel(snapshot());
  const widget = batch();
  widget.initialize({ model });
  const both = [document.createElement("div"), document.createElement("div")];
  const closes = both.map((el) => widget.render({ model, el }));
  expect(model.listeners).toBe(2);
  closes[0]!();
  model.tell(delta(1));
  await drawn();
  expect(texts(both[1]!, ".qnb-head > *")[1]).toBe("4 of 10 · 40 %");
});
