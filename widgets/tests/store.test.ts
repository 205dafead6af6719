import { expect, test } from "vitest";
import { BatchStore } from "../src/lib/store";
import { delta, ended3, rows, snapshot } from "./fakes";

function started(): BatchStore {
  const store = new BatchStore(() => 1000);
  const [wire, buffers] = rows();
  store.apply(snapshot({ rows: wire }), buffers);
  return store;
}

test("a snapshot is the whole picture, rows in columns", () => {
  const store = started();
  expect(store.picture).toMatchObject({ name: "simulate", total: 10, over: false, rate: 4.2 });
  const { rows: table } = store;
  expect([table.state(2), table.result(2), table.parameter(0, 2), table.parameter(1, 2)]).toEqual(["failed", "ValueError: no", "2", "'left'"]);
  expect([table.result(0), table.worker(0), table.runtime(0, 9)]).toEqual(["1.5", "here-0", 0.25]);
  expect([table.result(3), table.runtime(3, 4.5)]).toEqual(["", 1.5]);
  expect(table.newest).toBe(2);
});

test("a delta changes counts and rows, and leaves the rest", () => {
  const store = started();
  const [wire, buffers] = ended3();
  expect(store.apply(delta(1, { rows: wire }), buffers)).toBe(true);
  expect(store.picture).toMatchObject({ rate: 5, total: 10, failures: [["ValueError", 1, "no"]] });
  expect([store.rows.state(3), store.rows.result(3), store.rows.attempts[3]]).toEqual(["done", "7", 2]);
  expect(store.rows.state(4)).toBe("queued");
});

test("what a call said while it ran goes when it has ended", () => {
  const store = started();
  store.rows.text([[-1, [3], ["half way"]]]);
  expect(store.rows.result(3)).toBe("half way");
  const [wire, buffers] = ended3();
  store.apply(delta(1, { rows: { ...wire, numbers: false } }), buffers.slice(0, 6));
  expect(store.rows.result(3)).toBe("");
  expect(store.rows.lacks(3)).toBe(true);
});

test("a gap asks for a snapshot, yet what came is drawn", () => {
  const store = started();
  expect(store.apply(delta(3, { rate: 9 }))).toBe(false);
  expect(store.picture!.rate).toBe(9);
  expect(store.apply(delta(4))).toBe(true);
});

test("what was overtaken changes nothing", () => {
  const store = started();
  store.apply(delta(5));
  expect(store.apply(delta(4, { rate: 1 }))).toBe(true);
  store.apply(snapshot({ seq: 3, rate: 1 }));
  expect(store.picture!.rate).toBe(5);
});

test("a heartbeat moves the clock, and shows that the last delta was dropped", () => {
  const store = started();
  const beat = { ...delta(0), kind: "beat" as const, elapsed: 30 };
  expect(store.apply({ ...beat, seq: 0 })).toBe(true);
  expect(store.picture!.elapsed).toBe(30);
  expect(store.apply({ ...beat, seq: 1 })).toBe(false);
});

test("without a snapshot nothing can be drawn", () => {
  const store = new BatchStore();
  expect(store.apply(delta(1))).toBe(false);
  expect(store.picture).toBeNull();
});

test("calls that do not come are asked for, but not at once", () => {
  let now = 0;
  const store = new BatchStore(() => now);
  store.apply(snapshot());
  expect(store.apply(delta(1))).toBe(true);
  now = 1500;
  expect(store.apply(delta(2))).toBe(false);
  const [wire, buffers] = rows();
  store.apply(snapshot({ seq: 3, rows: wire }), buffers);
  now = 5000;
  expect(store.apply(delta(4))).toBe(true);
});

test("listeners hear until they leave", () => {
  const store = started();
  let heard = 0;
  const leave = store.subscribe(() => heard++);
  store.apply(delta(1));
  leave();
  store.apply(delta(2));
  expect([heard, store.listeners]).toEqual([1, 0]);
});
