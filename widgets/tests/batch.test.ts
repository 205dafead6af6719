import { afterEach, beforeEach, expect, test, vi } from "vitest";
import batch from "../src/batch";
import { FakeModel, delta, ended3, rows, snapshot } from "./fakes";

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

/** A view that has its rows. */
async function whole(changes: object = {}): Promise<{ model: FakeModel; element: HTMLElement; close: () => void; dispose: () => void }> {
  const model = new FakeModel(snapshot());
  const opened = open(model);
  const [wire, buffers] = rows();
  model.tell(snapshot({ rows: wire, ...changes }), buffers);
  await drawn();
  return { model, ...opened };
}

function texts(element: Element, selector: string): string[] {
  return Array.from(element.querySelectorAll(selector), (found) => found.textContent ?? "");
}

function named(element: Element, name: string): HTMLElement {
  return [...element.querySelectorAll<HTMLElement>("button, summary")].find((found) => found.textContent === name)!;
}

/** Let the next frame be drawn. */
async function drawn(): Promise<void> {
  await vi.advanceTimersByTimeAsync(50);
}

const ROW = ".qnb-grid-body [role=row]";

test("draws what the model saved, and the rows when they come", async () => {
  const { element } = open(new FakeModel(snapshot()));
  expect(texts(element, ".qnb-head > *").slice(0, 2)).toEqual(["simulate", "3 of 10 · 30 %"]);
  expect(texts(element, ".qnb-pace")).toEqual(["4.2/s · 3.0 s · about 6 s left"]);
  expect(texts(element, ".qnb-progress li")).toEqual(["2done", "1failed", "1running", "6queued"]);
  expect(texts(element, ".qnb-failures li")).toEqual(["ValueError×\u20091no"]);
  expect(element.querySelector<HTMLElement>(".qnb-grid")!.hidden).toBe(true);
  const { element: full } = await whole();
  expect(texts(full, "[role=columnheader]")).toEqual(["call", "state", "seed", "side", "result", "time", "worker"]);
  expect(texts(full, `${ROW}:nth-child(3) > *`)).toEqual(["2", "failed", "2", "'left'", "ValueError: no", "250 ms", "here-0"]);
  expect(full.querySelector(".qnb-grid")!.getAttribute("aria-rowcount")).toBe("11");
});

test("says what it is to those who do not see it", () => {
  const { element } = open(new FakeModel(snapshot()));
  const bar = element.querySelector("[role=progressbar]")!;
  expect(bar.getAttribute("aria-valuenow")).toBe("3");
  expect(bar.getAttribute("aria-valuemax")).toBe("10");
  expect(bar.getAttribute("aria-valuetext")).toBe("30 %, 3 of 10 calls");
  expect(element.querySelector("section")!.getAttribute("aria-label")).toBe("Batch simulate");
});

test("follows the kernel, one frame for many messages", async () => {
  const { model, element } = await whole();
  const frames = vi.spyOn(globalThis, "requestAnimationFrame");
  const [wire, buffers] = ended3();
  model.tell(delta(1, { rows: wire }), buffers);
  for (let seq = 2; seq <= 5; seq++) model.tell(delta(seq));
  expect(frames).toHaveBeenCalledTimes(1);
  await drawn();
  expect(texts(element, ".qnb-head > *")[1]).toBe("4 of 10 · 40 %");
  expect(texts(element, `${ROW}:nth-child(4) > *`)).toEqual(["3", "done, try 2", "3", "'right'", "7", "500 ms", "here-0"]);
});

test("markup in values stays text", async () => {
  const bad = "<img src=x onerror=alert(1)>";
  const { model, element } = await whole({ name: bad, failures: [[bad, 1, bad]] });
  model.tell(delta(1, { rows: { count: 0, numbers: false, index: true, texts: [[-1, [2], [bad]]] } }));
  await drawn();
  expect(element.querySelector("img")).toBeNull();
  expect(texts(element, `${ROW}:nth-child(3) > *`)[4]).toBe(bad);
});

test("a header sorts up, down, and not at all", async () => {
  const { element } = await whole();
  const first = (): string => texts(element, `${ROW}:first-child > *`)[0]!;
  const header = named(element, "seed");
  const seen = [];
  for (let clicks = 0; clicks < 3; clicks++) {
    header.click();
    await drawn();
    seen.push([first(), header.parentElement!.getAttribute("aria-sort")]);
  }
  expect(seen).toEqual([["0", "ascending"], ["9", "descending"], ["0", null]]);
});

test("filters by text and by state, and says how many are left", async () => {
  const { element } = await whole();
  const state = element.querySelector("select")!;
  state.value = "done";
  state.dispatchEvent(new Event("change"));
  await drawn();
  expect(texts(element, `${ROW} > :first-child`)).toEqual(["0", "1"]);
  expect(texts(element, ".qnb-tools .qnb-dim")).toEqual(["2 of 10"]);
  const filter = element.querySelector<HTMLInputElement>("input[type=search]")!;
  filter.value = "RIGHT";
  filter.dispatchEvent(new Event("input"));
  await vi.advanceTimersByTimeAsync(300);
  expect(texts(element, `${ROW} > :first-child`)).toEqual(["1"]);
});

test("columns are chosen", async () => {
  const { element } = await whole();
  const boxes = [...element.querySelectorAll<HTMLLabelElement>(".qnb-menu label")];
  boxes.find((label) => label.textContent === "side")!.querySelector("input")!.click();
  boxes.find((label) => label.textContent === "tries")!.querySelector("input")!.click();
  await drawn();
  expect(texts(element, "[role=columnheader]")).toEqual(["call", "state", "seed", "result", "time", "tries", "worker"]);
});

const DETAIL = {
  index: 2, id: "3f9c2a7e-0:2", state: "failed", arguments: [["seed", "2"]], result: null, error: "ValueError: no",
  traceback: "Traceback:\nValueError: no", output: "begun\n", worker: "here-0", attempts: 1, times: [1, 2, 2.25],
};

test("a row and a failure open everything of a call; Escape closes it", async () => {
  const { model, element } = await whole();
  element.querySelector<HTMLElement>(`${ROW}:nth-child(3)`)!.click();
  expect(model.asked("detail").with).toEqual({ index: 2 });
  model.answer("detail", DETAIL);
  await drawn();
  const panel = element.querySelector<HTMLElement>(".qnb-detail")!;
  expect(texts(panel, "pre")).toEqual(["Traceback:\nValueError: no", "begun\n"]);
  expect(panel.textContent).toMatch(/on here-0 · waited 1.0 s · ran 250 ms/);
  panel.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
  expect(panel.hidden).toBe(true);
  element.querySelector<HTMLElement>(".qnb-failures button")!.click();
  expect(model.asked("example").with).toEqual({ kind: "ValueError" });
});

test("what is open is opened by the view that takes its place, unless it was closed", async () => {
  const model = new FakeModel(snapshot());
  const widget = batch();
  const places = [0, 1, 2].map(() => document.body.appendChild(document.createElement("div")));
  widget.initialize({ model });
  let close = widget.render({ model, el: places[0]! });
  await drawn();
  places[0]!.querySelector<HTMLElement>(".qnb-failures button")!.click();
  close(); // before the kernel has answered, as when an output becomes HTML
  close = widget.render({ model, el: places[1]! });
  model.answer("example", DETAIL);
  await drawn();
  const panel = places[1]!.querySelector<HTMLElement>(".qnb-detail")!;
  expect(texts(panel, "pre")).toEqual(["Traceback:\nValueError: no", "begun\n"]);
  panel.dispatchEvent(new KeyboardEvent("keydown", { key: "Escape", bubbles: true }));
  close();
  widget.render({ model, el: places[2]! });
  await drawn();
  expect(model.sent.filter(({ what }) => what === "example").length).toBe(2);
});

test("the keyboard moves through the rows and opens one", async () => {
  const { model, element } = await whole();
  const grid = element.querySelector<HTMLElement>(".qnb-grid")!;
  for (const key of ["ArrowDown", "ArrowDown", "ArrowUp", "End", "ArrowUp", "Enter"]) {
    grid.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true, cancelable: true }));
  }
  expect(model.asked("detail").with).toEqual({ index: 8 });
});

test("text that has not come is asked for", async () => {
  const { model, element } = await whole();
  const [wire, buffers] = ended3();
  model.tell(delta(1, { rows: { ...wire, numbers: false } }), buffers.slice(0, 6));
  await drawn();
  expect(model.asked("texts").with).toEqual({ indices: [3] });
  model.answer("texts", [[-1, [3], ["{'a': 1}"]]]);
  await drawn();
  expect(texts(element, `${ROW}:nth-child(4) > *`)[4]).toBe("{'a': 1}");
});

test("the cancel button waits, is heard, or says that the kernel is busy", async () => {
  const { model, element } = await whole();
  const button = named(element, "Cancel") as HTMLButtonElement;
  button.click();
  await drawn();
  expect(button.disabled).toBe(true);
  expect(texts(element, ".qnb-note")[0]).toMatch(/^Cancelling/);
  await vi.advanceTimersByTimeAsync(1500);
  expect(texts(element, ".qnb-note")[0]).toMatch(/^The kernel is busy.*■/);
  model.answer("cancel", "7 calls cancelled");
  await drawn();
  expect(button.disabled).toBe(false);
  expect(texts(element, ".qnb-note")).toEqual([""]);
});

test("what cannot be done is said", async () => {
  const { model, element } = await whole();
  named(element, "Retry failed").click();
  model.answer("retry", "QnbError: the arguments were not kept", false);
  await drawn();
  expect(texts(element, ".qnb-note")).toEqual(["QnbError: the arguments were not kept"]);
});

test("a second try is shown below, where its own model finds the mark", async () => {
  const { model, element } = await whole();
  named(element, "Retry failed").click();
  model.answer("retry", { key: "k2", run: "3f9c2a7e-1", calls: 1 });
  await drawn();
  const second = new FakeModel(snapshot({ name: "again" }), "k2");
  const dispose = batch().initialize({ model: second });
  expect(texts(element, ".qnb-again .qnb-name")).toEqual(["again"]);
  dispose();
});

test("a kernel that falls silent is told of", async () => {
  const { element } = await whole();
  await vi.advanceTimersByTimeAsync(6000);
  expect(element.querySelector<HTMLElement>(".qnb-note")!.hidden).toBe(true);
  await vi.advanceTimersByTimeAsync(3000);
  expect(texts(element, ".qnb-note")[0]).toMatch(/^No news from the kernel for/);
});

test("at the end there is no cancel, no clock and no note", async () => {
  const { model, element } = await whole();
  model.tell(delta(1, { counts: [0, 0, 0, 0, 9, 1, 0, 0], over: true, elapsed: 12.3, eta: null }));
  await drawn();
  expect(named(element, "Cancel").hidden).toBe(true);
  expect(named(element, "Retry failed").hidden).toBe(false);
  expect(texts(element, ".qnb-pace")).toEqual(["in 12 s · 49/min"]);
  expect(texts(element, ".qnb-head > *")[1]).toBe("10 calls");
  await vi.advanceTimersByTimeAsync(60_000);
  expect(texts(element, ".qnb-note")).toEqual([""]);
});

test("says when it comes and goes, and leaves nothing behind", async () => {
  const onDocument = vi.spyOn(document, "addEventListener");
  const offDocument = vi.spyOn(document, "removeEventListener");
  const model = new FakeModel(snapshot(), "k1");
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

test("stands in an output that became HTML, keeps what was chosen, and goes with it", async () => {
  const model = new FakeModel(snapshot(), "k1");
  const widget = batch();
  const dispose = widget.initialize({ model });
  const output = (): HTMLElement => {
    const made = document.createElement("div");
    made.innerHTML = '<div class="qnb-live qnb-live-k1"><div>the last state</div></div>';
    document.body.append(made);
    return made;
  };
  const first = output();
  await drawn();
  const view = first.querySelector<HTMLElement>(".qnb-view")!;
  expect(first.querySelector<HTMLElement>(".qnb-live > div")!.hidden).toBe(true);
  const second = output();
  first.remove();
  await drawn();
  expect(second.querySelector(".qnb-view")).toBe(view);
  expect(model.said("gone")).toHaveLength(0);
  second.remove();
  await drawn();
  expect(model.said("gone")).toHaveLength(1);
  const third = output();
  await drawn();
  dispose();
  expect(third.querySelector<HTMLElement>(".qnb-live > div")!.hidden).toBe(false);
  expect(third.querySelector(".qnb-view")).toBeNull();
});
