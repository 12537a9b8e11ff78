"use strict";
// What all figures share: the page's data, marks, axes, and which trial is pointed at.
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const shown = data.methods.map(() => true);

// Marks: paths around (0, 0) with about the same area.
const polygon = (corners, turn, outer, inner) => {
  const steps = inner ? corners * 2 : corners;
  const at = (i) => {
    const radius = inner && i % 2 ? inner : outer;
    const angle = turn + (2 * Math.PI * i) / steps;
    return `${(radius * Math.sin(angle)).toFixed(2)} ${(-radius * Math.cos(angle)).toFixed(2)}`;
  };
  return `M${Array.from({ length: steps }, (_, i) => at(i)).join("L")}Z`;
};
const bars = (r, t) => `M${-t} ${-r}H${t}V${-t}H${r}V${t}H${t}V${r}H${-t}V${t}H${-r}V${-t}H${-t}Z`;
const diagonals = (r, t) => {
  const a = r - t;
  return `M${-r} ${-a}L${-a} ${-r}L0 ${-t}L${a} ${-r}L${r} ${-a}L${t} 0L${r} ${a}L${a} ${r}L0 ${t}L${-a} ${r}L${-r} ${a}L${-t} 0Z`;
};
const shapes = {
  circle: (r) => `M${-r} 0A${r} ${r} 0 1 1 ${r} 0A${r} ${r} 0 1 1 ${-r} 0Z`,
  diamond: (r) => polygon(4, 0, r * 1.25),
  triangle: (r) => polygon(3, 0, r * 1.35),
  square: (r) => polygon(4, Math.PI / 4, r * 1.25),
  wedge: (r) => polygon(3, Math.PI, r * 1.35),
  plus: (r) => bars(r * 1.15, r * 0.42),
  star: (r) => polygon(5, 0, r * 1.45, r * 0.62),
  cross: (r) => diagonals(r * 1.05, r * 0.5),
};
const element = (name, attributes, parent, text) => {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
};
const clear = (svg) => svg.replaceChildren();

// Numbers on axes.
const ticks = (low, high, wanted) => {
  const rough = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((k) => k >= rough * 0.999);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  const found = [];
  for (let k = Math.ceil(low / step - 1e-6); k * step <= high + step * 1e-6; k++) {
    found.push([k * step, (k * step).toFixed(digits)]);
  }
  return found;
};


// A small plot with its axes, as wide as its holder. ticks: [[value, text], ...]; returns where values go.
const frame = (holder, { height, about, xs, ys, xTicks, yTicks, left = 34, right = 12 }) => {
  const width = Math.max(200, holder.clientWidth);
  const box = { left, right: width - right, top: 12, bottom: height - 24 };
  const X = (v) => box.left + ((v - xs[0]) / (xs[1] - xs[0] || 1)) * (box.right - box.left);
  const Y = (v) => box.bottom - ((v - ys[0]) / (ys[1] - ys[0] || 1)) * (box.bottom - box.top);
  const small = element("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": about }, holder);
  for (const [value, text] of yTicks) {
    element("line", { class: "grid", x1: box.left, x2: box.right, y1: Y(value), y2: Y(value) }, small);
    element("text", { class: "tick", x: box.left - 6, y: Y(value) + 4, "text-anchor": "end" }, small, text);
  }
  for (const [value, text] of xTicks) {
    element("text", { class: "tick", x: X(value), y: height - 6, "text-anchor": "middle" }, small, text);
  }
  return { small, X, Y, box, width };
};
const panel = (parent, title, className = "") => {
  const holder = document.createElement("div");
  holder.className = className;
  const head = document.createElement("h4");
  head.textContent = title;
  holder.append(head);
  parent.append(holder);
  return holder;
};
const pathOf = (places) => `M${places.map(([x, y]) => `${x.toFixed(1)} ${y.toFixed(1)}`).join("L")}`;
const dashed = (m) => (data.methods[m].dash ? { "stroke-dasharray": data.methods[m].dash } : {});
const mark = (parent, m, x, y, radius, className = "") => element("path", {
  class: `${className} m${m}`, d: shapes[data.methods[m].shape](radius), transform: `translate(${x.toFixed(1)} ${y.toFixed(1)})`,
}, parent);

// One trial is pointed at in all figures: whoever can show it adds a function (row or null) here.
const links = [];
