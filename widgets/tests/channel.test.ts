import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Channel, PATIENCE, RESTARTED } from "../src/lib/channel";
import { BatchStore, StateStore } from "../src/lib/store";
import { FakeModel, delta, snapshot } from "./fakes";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test("starts from what was saved", () => {
  expect(new Channel(new FakeModel(snapshot()), new BatchStore()).store.picture?.total).toBe(10);
  expect(new Channel(new FakeModel(), new BatchStore()).store.picture).toBeNull();
});

test("asks for a snapshot once a second however large the gap", () => {
  let now = 5000;
  const model = new FakeModel(snapshot());
  const channel = new Channel(model, new BatchStore(), () => now);
  for (const seq of [3, 6, 9]) model.tell(delta(seq));
  expect(model.said("resync")).toHaveLength(1);
  now += 1000;
  model.tell(delta(12));
  expect(model.said("resync")).toHaveLength(2);
  model.tell(snapshot({ seq: 12, rate: 7 }));
  expect(channel.store.picture?.rate).toBe(7);
});

test("what is asked is answered, and a busy kernel is told of", async () => {
  const model = new FakeModel(snapshot());
  const channel = new Channel(model, new BatchStore());
  const busy = vi.fn();
  const first = channel.ask("cancel", { a: 1 }, busy);
  expect(model.asked("cancel").with).toEqual({ a: 1 });
  model.answer("cancel", "3 calls cancelled");
  expect(await first).toMatchObject({ ok: true, value: "3 calls cancelled" });
  await vi.advanceTimersByTimeAsync(PATIENCE);
  expect(busy).not.toHaveBeenCalled();
  const late = channel.ask("cancel", {}, busy);
  await vi.advanceTimersByTimeAsync(PATIENCE);
  expect(busy).toHaveBeenCalledTimes(1);
  model.answer("cancel", "later");
  expect((await late).value).toBe("later");
});

test("heard is not answered: only silence is a busy kernel", async () => {
  const model = new FakeModel(snapshot());
  const busy = vi.fn();
  void new Channel(model, new BatchStore()).ask("probe", {}, busy);
  model.tell({ kind: "ack", id: model.asked("probe").id });
  await vi.advanceTimersByTimeAsync(10 * PATIENCE);
  expect(busy).not.toHaveBeenCalled();
});

test("a state that is whole makes up for one that was missed", () => {
  const model = new FakeModel({ kind: "snapshot", seq: 0, state: 1 });
  const channel = new Channel(model, new StateStore<number>());
  model.tell({ kind: "state", seq: 3, state: 7 });
  expect([channel.store.state, model.said("resync")]).toEqual([7, []]);
  model.tell({ kind: "beat", seq: 4 });
  expect(model.said("resync")).toHaveLength(1);
});

test("closing frees the model", () => {
  const model = new FakeModel(snapshot());
  const channel = new Channel(model, new BatchStore());
  expect(model.listeners).toBe(2);
  channel.close();
  expect(model.listeners).toBe(0);
});

test("a model that is closed takes nothing, and nothing breaks", () => {
  const model = new FakeModel(snapshot());
  const channel = new Channel(model, new BatchStore());
  model.send = () => {
    throw new Error("Cannot send");
  };
  expect(() => channel.send({ kind: "placed" })).not.toThrow();
});

test("a kernel that was restarted answers nothing: who asked and who asks is told", async () => {
  const model = new FakeModel(snapshot());
  const channel = new Channel(model, new BatchStore());
  const busy = vi.fn();
  const asked = channel.ask("cancel", {}, busy);
  model.fire("comm_live_update");
  expect([await asked, await channel.ask("retry", {}, busy)].map(({ ok, value }) => [ok, value])).toEqual([[false, RESTARTED], [false, RESTARTED]]);
  await vi.advanceTimersByTimeAsync(PATIENCE);
  expect(busy).not.toHaveBeenCalled();
});
