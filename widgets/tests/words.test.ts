import { expect, test } from "vitest";
import * as words from "../src/lib/words";
import cases from "./words.json";

test.each(cases.count as [number, string][])("count %s", (value, text) => expect(words.count(value)).toBe(text));
test.each(cases.percent as [[number, number], string][])("percent %s", (pair, text) =>
  expect(words.percent(...pair)).toBe(text),
);
test.each(cases.duration as [number, string][])("duration %s", (value, text) =>
  expect(words.duration(value)).toBe(text),
);
test.each(cases.rate as [number, string][])("rate %s", (value, text) => expect(words.rate(value)).toBe(text));
test.each(cases.left as [number | null, string][])("left %s", (value, text) => expect(words.left(value)).toBe(text));
