/** An element with class, attributes and children. */
export function make<Name extends keyof HTMLElementTagNameMap>(
  name: Name,
  className = "",
  attributes: Record<string, string> = {},
  ...children: (Node | string)[]
): HTMLElementTagNameMap[Name] {
  const element = document.createElement(name);
  if (className) element.className = className;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

/** Set the text, and touch nothing when it is the same: most of a view is, from one message to the next. */
export function setText(element: Element, text: string): void {
  if (element.textContent !== text) element.textContent = text;
}

/** Set or, for null, remove an attribute, when it changes. */
export function setAttribute(element: Element, name: string, value: string | null): void {
  if (element.getAttribute(name) === value) return;
  if (value === null) element.removeAttribute(name);
  else element.setAttribute(name, value);
}

/** Bring a parent's children to a number, by making or removing the last ones. */
export function resize(parent: Element, length: number, makeOne: () => Element): void {
  while (parent.children.length > length) parent.lastElementChild!.remove();
  while (parent.children.length < length) parent.append(makeOne());
}
