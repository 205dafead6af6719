import { expect, test } from "vitest";
import { Store } from "../src/lib/store";
import { delta, row, snapshot } from "./fakes";

function started(): Store {
  const store = new Store(() => 1000);
  store.apply(snapshot());
  return store;
}

test("a snapshot is the whole picture", () => {
  const { picture } = started();
  expect(picture).toMatchObject({ name: "simulate", total: 10, over: false, rate: 4.2 });
  expect(picture!.rows[2]).toMatchObject({ index: 2, state: "failed", result: "ValueError: no", parameters: ["2", "'left'"] });
});

test("a delta changes counts and rows, and leaves the rest", () => {
  const store = started();
  expect(store.apply(delta(1))).toBe(true);
  expect(store.picture).toMatchObject({ rate: 5, total: 10, failures: [["ValueError", 1, "no"]] });
  expect(store.picture!.rows.map(({ index, state }) => [index, state])).toEqual([
    [0, "done"], [1, "done"], [2, "failed"], [3, "done"],
  ]);
});

test("rows that left the window are forgotten", () => {
  const store = started();
  store.apply(delta(1, { rows: [row(7)], order: [3, 7] }));
  expect(store.picture!.rows.map(({ index }) => index)).toEqual([3, 7]);
  expect(store.apply(delta(2, { rows: [], order: [0, 7] }))).toBe(false);
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
  const beat = { kind: "beat", rate: 1, eta: 2, elapsed: 30 } as const;
  expect(store.apply({ ...beat, seq: 0 })).toBe(true);
  expect(store.picture).toMatchObject({ elapsed: 30, counts: [0, 6, 1, 0, 2, 1, 0, 0] });
  expect(store.apply({ ...beat, seq: 1 })).toBe(false);
});

test("without a snapshot nothing can be drawn", () => {
  const store = new Store();
  expect(store.apply(delta(1))).toBe(false);
  expect(store.picture).toBeNull();
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
