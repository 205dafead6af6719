// Numbers as people read them. qnb/notebook/words.py says the same; tests/words.json holds both to it.

export function count(value: number): string {
  return Math.round(value).toString().replace(/\B(?=(\d{3})+$)/g, ",");
}

/** Whole percent, rounded down: 100 % means all of them. */
export function percent(part: number, whole: number): string {
  return `${whole ? Math.floor((100 * part) / whole) : 100} %`;
}

function padded(value: number): string {
  return value.toString().padStart(2, "0");
}

export function duration(seconds: number): string {
  const milliseconds = Math.round(seconds * 1000);
  if (milliseconds < 1) return "<1 ms";
  if (milliseconds < 1000) return `${milliseconds} ms`;
  if (milliseconds < 9950) return `${(milliseconds / 1000).toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${padded(whole % 60)} s`;
  const minutes = Math.floor(whole / 60);
  if (minutes < 24 * 60) return `${Math.floor(minutes / 60)} h ${padded(minutes % 60)} min`;
  const hours = Math.floor(minutes / 60);
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

/** Calls per second, or per minute or hour where that reads better; nothing for none. */
export function rate(perSecond: number): string {
  if (!(perSecond > 0)) return "";
  if (perSecond >= 9.95) return `${count(perSecond)}/s`;
  if (perSecond >= 1) return `${perSecond.toFixed(1)}/s`;
  if (perSecond * 60 >= 1) return `${Math.round(perSecond * 60)}/min`;
  return `${Math.max(1, Math.round(perSecond * 3600))}/h`;
}

/** Time left, as rough as it is. */
export function left(seconds: number | null): string {
  if (seconds === null) return "";
  if (seconds < 1) return "about 1 s left";
  const whole = Math.ceil(seconds);
  if (whole < 60) return `about ${whole} s left`;
  const minutes = Math.ceil(whole / 60);
  return `about ${minutes < 60 ? `${minutes} min` : duration(minutes * 60)} left`;
}

/** A number in six digits, an integer in all of its own. */
export function number(value: number): string {
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return `${value}`;
  if (!Number.isFinite(value)) return Number.isNaN(value) ? "nan" : value > 0 ? "inf" : "-inf";
  const size = Math.abs(value);
  if (size >= 1e-4 && size < 1e6) return `${Number(value.toPrecision(6))}`;
  return value.toExponential(5).replace(/\.?0+e/, "e");
}

/** Bytes in the unit that reads best. */
export function bytes(value: number): string {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  for (; value >= 1024 && unit < units.length - 1; unit++) value /= 1024;
  return `${value >= 100 || unit === 0 ? Math.round(value) : Number(value.toPrecision(2))} ${units[unit]}`;
}

/** One or many of something: `plural(2, "call")`. */
export function plural(value: number, word: string, many = `${word}s`): string {
  return `${count(value)} ${value === 1 ? word : many}`;
}
