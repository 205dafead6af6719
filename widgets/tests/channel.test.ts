import { afterEach, beforeEach, expect, test, vi } from "vitest";
import { Channel, PATIENCE } from "../src/lib/channel";
import { FakeModel, delta, snapshot } from "./fakes";

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

test("starts from what was saved", () => {
  const channel = new Channel(new FakeModel(snapshot()));
  expect(channel.store.picture?.total).toBe(10);
  expect(new Channel(new FakeModel()).store.picture).toBeNull();
});

test("asks for a snapshot once a second however large the gap", () => {
  let now = 5000;
  const model = new FakeModel(snapshot());
  const channel = new Channel(model, () => now);
  for (const seq of [3, 6, 9]) model.tell(delta(seq));
  expect(model.said("resync")).toHaveLength(1);
  now += 1000;
  model.tell(delta(12));
  expect(model.said("resync")).toHaveLength(2);
  model.tell(snapshot({ seq: 12, rate: 7 }));
  expect(channel.store.picture?.rate).toBe(7);
});

test("the final state may come as the model's own", () => {
  const model = new FakeModel(snapshot());
  const channel = new Channel(model);
  model.set(snapshot({ seq: 1, over: true }));
  expect(channel.store.picture?.over).toBe(true);
});

test("cancel is answered, or the kernel is busy", async () => {
  const model = new FakeModel(snapshot());
  const channel = new Channel(model);
  const heard = channel.cancel();
  model.tell({ kind: "ack", id: model.said("cancel")[0]!.id as string });
  expect(await heard).toBe(true);
  const unheard = channel.cancel();
  await vi.advanceTimersByTimeAsync(PATIENCE);
  expect(await unheard).toBe(false);
});

test("closing frees the model", () => {
  const model = new FakeModel(snapshot());
  const channel = new Channel(model);
  expect(model.listeners).toBe(2);
  channel.close();
  expect(model.listeners).toBe(0);
});
