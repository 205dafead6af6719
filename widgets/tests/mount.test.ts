import { afterEach, expect, test, vi } from "vitest";
import { mount, type Mounted } from "../src/lib/mount";

afterEach(() => void document.body.replaceChildren());

/** An output with the mark of a view, as Jupyter makes it, and the view in it: a button and something that scrolls. */
function output(): { update: () => Promise<void>; view: HTMLElement; button: HTMLElement; box: HTMLElement; other: HTMLElement; end: () => void } {
  const html = `<div class="qnb-live qnb-live-k"><table></table></div>`;
  const area = document.createElement("div");
  area.className = "jp-OutputArea";
  const other = document.createElement("button");
  document.body.append(area, other);
  area.innerHTML = html;
  const [button, box] = [document.createElement("button"), document.createElement("div")];
  const element = document.createElement("section");
  element.append(button, box);
  const end = mount("k", (): Mounted => ({ element, close: () => {} }));
  const update = async (): Promise<void> => {
    area.replaceChildren();
    (document.activeElement as HTMLElement).blur(); // as a browser has it of what leaves the page
    box.scrollTop = 0;
    area.innerHTML = html;
    await vi.waitUntil(() => element.isConnected);
  };
  return { update, view: element, button, box, other, end };
}

test("a view stands in its output, in front of what is there without a kernel", async () => {
  const { view, update, end } = output();
  await update();
  expect(view.parentElement!.className).toBe("qnb-live qnb-live-k");
  expect(view.parentElement!.querySelector("table")!.hidden).toBe(true);
  end();
  expect(document.querySelector("table")!.hidden).toBe(false);
  expect(view.isConnected).toBe(false);
});

test("an output that is brought up to date leaves the focus, and what is scrolled, where they were", async () => {
  const { button, box, update } = output();
  button.focus();
  box.scrollTop = 480;
  box.dispatchEvent(new Event("scroll"));
  await update();
  expect(document.activeElement).toBe(button);
  expect(box.scrollTop).toBe(480);
});

test("the focus is taken from nobody", async () => {
  const { button, other, update } = output();
  button.focus();
  other.focus();
  await new Promise((next) => setTimeout(next, 5));
  await update();
  expect(document.activeElement).not.toBe(button);
});
