import { afterEach, beforeEach, expect, test, vi } from "vitest";
import type { Column } from "../src/lib/columns";
import { Grid, ROW } from "../src/lib/grid";
import type { Rows } from "../src/lib/rows";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

/** A table of so many rows, whose text says how long the result is. */
function table(count: number, result = (index: number): string => `${index}`): { grid: Grid; drawn: Set<number>; scroll: (row: number) => void } {
  const drawn = new Set<number>();
  const text = (index: number): string => (drawn.add(index), result(index));
  const columns: Column[] = [{ id: "result", title: "result", number: false, text, key: text }];
  const rows = { count, newest: 0, state: () => "done", bad: () => false, lacks: () => false } as unknown as Rows;
  const grid = new Grid({ sort: () => {}, open: () => {}, texts: () => {} });
  document.body.replaceChildren(grid.element);
  grid.hold();
  grid.draw(rows, columns, null, { elapsed: 0, follow: false, sort: "", down: false, opened: -1 });
  const scroll = (row: number): void => {
    drawn.clear();
    grid.element.scrollTop = row * ROW;
    grid.element.dispatchEvent(new Event("scroll"));
  };
  return { grid, drawn, scroll };
}

test("as many rows are drawn as are near, however many there are", () => {
  const { grid, drawn, scroll } = table(100_000);
  scroll(3);
  expect(drawn.size).toBe(21);
  scroll(6);
  expect([Math.min(...drawn), Math.max(...drawn)]).toEqual([1, 21]);
  expect(grid.element.querySelectorAll(".qnb-grid-body > *").length).toBe(21);
});

test("while many pass by, those in sight are drawn, and those beyond once it rests", () => {
  const { drawn, scroll } = table(100_000);
  for (const row of [500, 540, 541]) {
    scroll(row);
    expect([Math.min(...drawn), Math.max(...drawn)]).toEqual([row, row + 10]);
  }
  drawn.clear();
  vi.advanceTimersByTime(200);
  expect([Math.min(...drawn), Math.max(...drawn)]).toEqual([536, 556]);
  scroll(542);
  expect(drawn.size).toBe(21);
});

test("the last rows are drawn where the table ends", () => {
  const { drawn, scroll } = table(1000);
  scroll(990);
  expect(Math.max(...drawn)).toBe(999);
});

test("what is longer than its column ends in an ellipsis; what may be wider than it is long is clipped", () => {
  const { grid } = table(3, (index) => ["short", "long ".repeat(20), "日本"][index]!);
  const cells = [...grid.element.querySelectorAll(".qnb-grid-body [role=gridcell]")];
  expect(cells.map((cell) => cell.textContent!.length)).toEqual([5, 82, 2]);
  expect(cells[1]!.textContent).toMatch(/…$/);
  expect(cells.map((cell) => cell.classList.contains("qnb-clipped"))).toEqual([false, false, true]);
});

test("results give way, so that all columns are in sight, and take what is left where there is room", () => {
  let resized: ResizeObserverCallback = () => {};
  vi.stubGlobal("ResizeObserver", class {
    constructor(callback: ResizeObserverCallback) {
      resized = callback;
    }
    observe = vi.fn();
    disconnect = vi.fn();
  });
  vi.spyOn(Element.prototype, "getBoundingClientRect").mockReturnValue({ width: 700 } as DOMRect); // 7 pixels a character
  const text = (): string => "x".repeat(200);
  const columns: Column[] = [
    { id: "result", title: "result", number: false, text, key: text },
    { id: "worker", title: "worker", number: false, text: () => worker, key: () => worker },
  ];
  let worker = "alpha";
  const rows = { count: 3, newest: 0, state: () => "done", bad: () => false, lacks: () => false } as unknown as Rows;
  const grid = new Grid({ sort: () => {}, open: () => {}, texts: () => {} });
  const draw = (): void => grid.draw(rows, columns, null, { elapsed: 0, follow: false, sort: "", down: false, opened: -1 });
  draw();
  const seen = (pixels: number): [string, number] => {
    resized([{ contentRect: { width: pixels } } as ResizeObserverEntry], {} as ResizeObserver);
    return [grid.element.style.getPropertyValue("--qnb-columns"), grid.element.querySelector("[role=gridcell]")!.textContent!.length];
  };
  expect(seen(7 * 50)).toEqual(["40ch 10ch", 38]);
  expect(seen(7 * 1000)).toEqual(["84ch 10ch", 82]);
  expect(seen(7 * 20)).toEqual(["16ch 10ch", 14]); // no less: then it scrolls
  seen(7 * 50);
  worker = "a worker of a long name";
  draw();
  expect(seen(0)).toEqual(["25ch 25ch", 23]); // what another column comes to need, as widths are now
  vi.unstubAllGlobals();
  vi.restoreAllMocks();
});
