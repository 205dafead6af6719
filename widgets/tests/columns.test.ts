import { expect, test } from "vitest";
import { arrange, columnsOf, usual } from "../src/lib/columns";
import { lanesOf, lastBefore, step } from "../src/lib/lanes";
import { Rows } from "../src/lib/rows";
import { rows as wire } from "./fakes";

function filled(): Rows {
  const table = new Rows(10, [["seed", true], ["side", false]]);
  table.change(...wire(), 0);
  return table;
}

const all = { state: "", text: "", sort: "", down: false };
const order = (wanted: Partial<typeof all>): number[] | null => {
  const table = filled();
  const found = arrange(table, columnsOf(table), { ...all, ...wanted }, 5);
  return found && [...found];
};

test("as they come, no order is kept", () => expect(order({})).toBeNull());
test("by state", () => expect(order({ state: "done" })).toEqual([0, 1]));
test("by text, in any column, whatever the case", () => {
  expect(order({ text: "valueerror" })).toEqual([2]);
  expect(order({ text: "'right'" })).toEqual([1, 3, 5, 7, 9]);
});
test("sorted by a number, what has none last", () => {
  expect(order({ sort: "result" })!.slice(0, 2)).toEqual([1, 0]);
  expect(order({ sort: "result", down: true })!.slice(0, 3)).toEqual([0, 1, 2]);
  expect(order({ sort: "time", down: true })!.slice(0, 2)).toEqual([3, 0]);
  expect(order({ sort: "call", down: true })).toEqual([9, 8, 7, 6, 5, 4, 3, 2, 1, 0]);
});
test("sorted by text", () => expect(order({ sort: "parameter side", state: "queued" })).toEqual([4, 6, 8, 5, 7, 9]));
test("both ways at once", () => expect(order({ state: "queued", sort: "parameter seed", down: true })).toEqual([9, 8, 7, 6, 5, 4]));

test("the usual columns", () => {
  const columns = columnsOf(filled());
  expect(columns.filter(({ id }) => usual(columns, false).has(id)).map(({ title }) => title)).toEqual([
    "call", "state", "seed", "side", "result", "time", "worker",
  ]);
  expect(usual(columns, true).has("worker")).toBe(false);
});

test("calls stand side by side where they ran at the same time", () => {
  const table = new Rows(4, []);
  table.started.set([0, 0.5, 1, NaN]);
  table.finished.set([1, 2, NaN, NaN]);
  table.workers.set([1, 1, 1, 0]);
  expect(lanesOf(table)).toEqual([{ worker: 1, calls: [0, 2] }, { worker: 1, calls: [1] }]);
  expect([0.2, 1, 3, -1].map((time) => lastBefore([0, 2], table.started, time))).toEqual([0, 1, 1, -1]);
});

test.each([[10, 5, 2], [0.03, 4, 0.01], [600, 8, 120], [7200, 6, 1800]])("steps of an axis: %s s in %s", (seconds, number, every) => {
  expect(step(seconds, number)).toBeCloseTo(every);
});
