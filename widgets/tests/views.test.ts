// The six smaller views: what each shows of a state, what its buttons ask, and that it leaves nothing behind.
import { afterEach, beforeEach, expect, test, vi } from "vitest";
import brokers from "../src/brokers";
import events from "../src/events";
import queues from "../src/queues";
import runs from "../src/runs";
import session from "../src/session";
import workers from "../src/workers";
import { FakeModel } from "./fakes";

const SESSION = {
  name: "fox", broker: "sqlite:///.qnb/qnb.db", backend: "the same", room: "1.2 MB of 4.3 GB at most", queue: "qnb",
  queues: [["qnb", 7], ["slow", null]], workers: 2, lanes: 4, busy: 3, starting: false, start: "qnb worker x", pending: 5,
  rate: 12.34, history: [0, 3, 12.3], runs: [["r-1", "first", 10, 10, 0, 0, 0], ["r-2", "second", 10, 4, 1, 0, 0]], closed: false,
};
const WORKER = {
  worker: "alpha", here: true, seen: 99, answers: true, host: "box", pid: 7, queues: ["qnb"], paused: [] as string[], concurrency: 2, busy: 1,
  done: 1234, failed: 2, python: "3.11", version: "0.1", memory: 64 * 2 ** 20, cpu: 0.5, tasks: [{ id: "r-1:3", name: "slow", since: 4 }],
};
const WORKERS = { workers: [WORKER, { ...WORKER, worker: "beta", here: false, tasks: [] }], now: 100, start: "qnb worker x", live: true };
const BROKERS = {
  features: ["delays", "priorities"],
  brokers: [
    { scheme: "redis", url: "redis://h/0", support: { delays: "native", priorities: "built" }, limits: [["message", "512 MiB"]], client: "", installed: true, reachable: true, server: "7", seen_on: "7", measured: {}, probe: true, probing: false },
    { scheme: "sqs", url: null, support: { delays: "built", priorities: "none" }, limits: [["message", "1 MiB"]], client: "pip install boto3", installed: false, reachable: null, server: "", seen_on: "", measured: {}, probe: false, probing: false },
  ],
};
const RUN = { run: "r-1", kind: "map", name: "first", calls: 10, ends: [8, 1, 0, 0, 1], at: 0, session: "fox", mine: true };
const RUNS = { runs: [RUN, { ...RUN, run: "r-2", name: "second", mine: false }], backend: "redis://h/0", limit: 50 };
const QUEUES = { queues: [
  { queue: "qnb", depth: 7, history: [1, 7], workers: 2, lanes: 4, paused: 0, own: true },
  { queue: "slow", depth: null, history: [0], workers: 0, lanes: 0, paused: 0, own: false },
] };
const EVENTS = { total: 3, events: [[1, "task-done", "alpha", "a"], [2, "task-failed", "alpha", "b"], [3, "worker-here", "beta", "c"]] };
const ENTRIES = { session, workers, brokers, events, runs, queues };
type Name = keyof typeof ENTRIES;
const FIRST: Record<Name, object> = {
  session: { state: SESSION }, workers: { state: WORKERS }, brokers: { state: BROKERS }, runs: { state: RUNS }, queues: { state: QUEUES }, events: EVENTS,
};
const NAMES = Object.keys(ENTRIES) as Name[];

beforeEach(() => void vi.useFakeTimers());
afterEach(() => {
  vi.restoreAllMocks();
  vi.useRealTimers();
  document.body.replaceChildren();
});

function open(name: Name, key = ""): { model: FakeModel; element: HTMLElement; close: () => void; dispose: () => void } {
  const model = new FakeModel({ kind: "snapshot", seq: 0, ...FIRST[name] }, key);
  const widget = ENTRIES[name]();
  const element = document.createElement("div");
  const dispose = widget.initialize({ model });
  const close = widget.render({ model, el: element });
  document.body.append(element);
  return { model, element, close, dispose };
}

async function drawn(): Promise<void> {
  await vi.advanceTimersByTimeAsync(50);
}

function row(element: Element, text: string): HTMLElement {
  return [...element.querySelectorAll<HTMLElement>("tbody tr, li, dl")].find((found) => found.textContent!.includes(text))!;
}

function press(element: Element, label: string): void {
  [...element.querySelectorAll("button")].find((found) => found.getAttribute("aria-label") === label)!.click();
}

test.each(NAMES)("%s: says when it comes and goes, and leaves nothing behind", (name) => {
  const onDocument = vi.spyOn(document, "addEventListener");
  const offDocument = vi.spyOn(document, "removeEventListener");
  const onWindow = vi.spyOn(window, "addEventListener");
  const offWindow = vi.spyOn(window, "removeEventListener");
  const { model, element, close, dispose } = open(name, "k1");
  expect(model.said("ready")).toHaveLength(1);
  expect(element.querySelector(`.qnb-${name}`)!.getAttribute("aria-label")).toBeTruthy();
  close();
  dispose();
  expect(model.said("gone")).toHaveLength(1);
  expect(model.listeners).toBe(0);
  expect(offDocument.mock.calls.length).toBe(onDocument.mock.calls.length);
  expect(offWindow.mock.calls.length).toBe(onWindow.mock.calls.length);
  expect(vi.getTimerCount()).toBe(0);
  expect(element.childElementCount).toBe(0);
});

test.each(NAMES)("%s: a page that is hidden is told of, and draws nothing", async (name) => {
  const { model } = open(name);
  const hidden = vi.spyOn(document, "visibilityState", "get").mockReturnValue("hidden");
  const frames = vi.spyOn(globalThis, "requestAnimationFrame");
  document.dispatchEvent(new Event("visibilitychange"));
  await vi.advanceTimersByTimeAsync(3000);
  expect(model.said("hidden")).toHaveLength(1);
  expect(frames).not.toHaveBeenCalled();
  hidden.mockReturnValue("visible");
  document.dispatchEvent(new Event("visibilitychange"));
  await vi.advanceTimersByTimeAsync(1500);
  expect(model.said("shown")).toHaveLength(1);
  expect(frames).toHaveBeenCalled();
});

test("that it stands in an output is told once, also when a manager puts it there late", async () => {
  const { model, element } = open("session");
  await vi.advanceTimersByTimeAsync(1500);
  expect(model.said("placed")).toHaveLength(0);
  const output = document.createElement("div");
  output.className = "jp-OutputArea";
  document.body.append(output);
  output.append(element);
  await vi.advanceTimersByTimeAsync(3500);
  expect(model.said("placed")).toHaveLength(1);
});

test("session: figures, facts and runs", async () => {
  const { model, element } = open("session");
  const numbers = [...element.querySelectorAll(".qnb-numbers b")].map((found) => found.textContent);
  expect(numbers).toEqual(["7", "3 of 4", "12/s"]);
  expect(row(element, "broker").textContent).toContain("on disk1.2 MB of 4.3 GB at most");
  expect(row(element, "broker").textContent).toContain("qnb: 7 · slow: not told");
  expect(element.querySelector("li")!.textContent).toContain("second50 %10 calls · 1 failed · r-2");
  model.tell({ kind: "state", seq: 1, state: { ...SESSION, room: "", workers: 0, lanes: 0 } });
  await drawn();
  expect(element.textContent).not.toContain("on disk");
  expect(element.textContent).toContain("none: start one with  qnb worker x");
});

test("workers: what each does, and what the buttons ask", async () => {
  const { model, element } = open("workers");
  expect(row(element, "alpha").textContent).toMatch(/seen now.*1 of 2.*50 %.*64 MiB.*1,234.*slow.*r-1:3/s);
  expect(row(element, "beta").textContent).toContain("gone, last seen");
  for (const [label, what] of [["Pause alpha", "pause"], ["One process more for alpha", "grow"], ["One process fewer for alpha", "shrink"]] as const) {
    press(element, label);
    expect(model.asked(what).with).toEqual({ worker: "alpha" });
  }
  press(element, "End task r-1:3");
  expect(model.asked("revoke").with).toEqual({ worker: "alpha", task: "r-1:3" });
  press(element, "Shut down alpha");
  expect(model.asked("shutdown"), "asks first").toBeUndefined();
  await drawn();
  press(element, "Shut down alpha");
  expect(model.asked("shutdown").with).toEqual({ worker: "alpha" });
});

test("brokers: told apart by shape and word; a probe says what it saw", async () => {
  const { model, element } = open("brokers");
  expect([...row(element, "priorities").children].map((cell) => cell.textContent)).toEqual(["priorities", "◐ built", "○ none"]);
  expect([...row(element, "client").children].map((cell) => cell.textContent)).toEqual(["client", "✓ installed", "not installed"]);
  press(element, "Probe redis: try every feature on the server");
  expect(model.asked("probe").with).toEqual({ place: 0 });
  const measured = { delays: [true, 0.2, "came after 0.2 s"], priorities: [false, 1, "came last"] };
  model.tell({ kind: "state", seq: 1, state: { ...BROKERS, brokers: [{ ...BROKERS.brokers[0], measured }, BROKERS.brokers[1]] } });
  await drawn();
  expect(row(element, "delays").children[1]!.textContent).toBe("● native ✓");
  expect(row(element, "priorities").children[1]!.textContent).toBe("◐ built ✗ fails");
  expect(element.querySelector(".qnb-seen")!.textContent).toContain("came after 0.2 s");
});

test("events: newest first, by text, by kind, and stopped", async () => {
  const { model, element } = open("events");
  const shown = (): string[] => [...element.querySelectorAll("tbody tr")].map((line) => line.children[3]!.textContent!);
  expect(shown()).toEqual(["c", "b", "a"]);
  press(element, "Pause the stream");
  model.tell({ kind: "delta", seq: 1, total: 4, events: [[4, "task-done", "alpha", "d"]] });
  await drawn();
  expect(shown()).toEqual(["c", "b", "a"]);
  expect(element.textContent).toContain("1 since the pause");
  press(element, "Go on with the stream");
  await drawn();
  expect(shown()).toEqual(["d", "c", "b", "a"]);
  const late = [[3.5, "task-done", "beta", "late"], [0.5, "task-done", "gamma", "of another clock"]];
  model.tell({ kind: "delta", seq: 2, total: 6, events: late });
  await drawn();
  expect(shown()).toEqual(["of another clock", "d", "late", "c", "b", "a"]);
  const filter = element.querySelector("input")!;
  filter.value = "failed";
  filter.dispatchEvent(new Event("input"));
  await drawn();
  expect(shown()).toEqual(["b"]);
});

test("runs: a click attaches, and the batch stands below", async () => {
  const { model, element } = open("runs");
  expect(row(element, "first").textContent).toContain("this one");
  press(element, "Attach run r-2");
  expect(model.asked("attach").with).toEqual({ run: "r-2" });
  model.answer("attach", { key: "k2", run: "r-2" });
  await drawn();
  expect(element.querySelector(".qnb-live-k2")).not.toBeNull();
  expect(element.textContent).toContain('batch = session.attach("r-2")');
  expect(row(element, "second").className).toBe("qnb-opened");
});

test("queues: who serves what waits; a button pauses", async () => {
  const { model, element } = open("queues");
  expect(row(element, "slow").textContent).toContain("not toldnobody");
  expect(row(element, "slow").querySelector("button")!.disabled).toBe(true);
  press(element, "pause qnb on all workers");
  expect(model.asked("pause").with).toEqual({ queue: "qnb" });
  model.answer("pause", "qnb is paused on 2 of 2 workers.");
  model.tell({ kind: "state", seq: 1, state: { queues: [{ ...QUEUES.queues[0]!, paused: 2 }] } });
  await drawn();
  expect(element.textContent).toContain("paused on all");
  expect(element.querySelector(".qnb-note")!.textContent).toBe("qnb is paused on 2 of 2 workers.");
  press(element, "resume qnb on all workers");
  expect(model.asked("resume").with).toEqual({ queue: "qnb" });
});

test("a view that comes into sight again does not take its rest for the kernel's silence", async () => {
  const { element } = open("queues");
  const hidden = vi.spyOn(document, "visibilityState", "get").mockReturnValue("hidden");
  document.dispatchEvent(new Event("visibilitychange"));
  await vi.advanceTimersByTimeAsync(20_000);
  hidden.mockReturnValue("visible");
  for (const note of element.querySelectorAll<HTMLElement>(".qnb-note")) {
    await vi.advanceTimersByTimeAsync(1100);
    expect(note.hidden).toBe(true);
    document.dispatchEvent(new Event("visibilitychange"));
    await vi.advanceTimersByTimeAsync(1100);
    expect(note.hidden).toBe(true);
    await vi.advanceTimersByTimeAsync(8000);
    expect(note.textContent).toMatch(/^No news from the kernel/);
  }
});
