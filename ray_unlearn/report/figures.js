
// ---- learning curves: one small plot a method, the same axes ----
const panelsOf = (parent, items, titleOf) => {
  clear(parent);
  const holders = items.map((item) => panel(parent, titleOf(item), item.method === undefined ? "" : `m${item.method}`));
  return items.map((item, i) => [item, holders[i]]);
};
const curvesPlace = byId("curves");
let curveLines = new Map();
const drawCurves = () => {
  if (!curvesPlace) return;
  curveLines = new Map();
  const longest = Math.max(1e-9, ...data.curves.map((curve) => curve.points[curve.points.length - 1][0]));
  const items = data.methods.map((method, m) => ({ method: m, mine: data.curves.filter((curve) => curve.method === m) }));
  const drawn = panelsOf(curvesPlace, items.filter((item) => item.mine.length && shown[item.method]), (item) => data.methods[item.method].label);
  // Only now does every holder have its final width.
  for (const [{ method, mine }, holder] of drawn) {
    const { small, X, Y } = frame(holder, {
      height: 190, xs: [0, longest], ys: [0, 1], xTicks: ticks(0, longest, 4), yTicks: [[0, "0"], [0.5, "0.5"], [1, "1"]],
      about: `Objective by epoch of ${mine.length} trials of ${data.methods[method].label}`,
    });
    const places = (curve) => {
      const all = data.startObjective === null ? curve.points : [[0, data.startObjective], ...curve.points];
      return all.map(([x, y]) => [X(x), Y(y)]);
    };
    element("path", { class: "line", d: mine.filter((c) => !c.best).map((c) => pathOf(places(c))).join("") || "M0 0" }, small);
    for (const curve of mine.filter((c) => c.best)) {
      element("path", { class: "line best", d: pathOf(places(curve)) }, small);
      for (const [x, y] of curve.points) mark(small, method, X(x), Y(y), 3.5, "dot");
    }
    const over = element("path", { class: "line over", d: "M0 0" }, small);
    for (const curve of mine) curveLines.set(curve.row, () => { over.setAttribute("d", pathOf(places(curve))); return over; });
  }
};
const follow = (lines) => {
  let last = null;
  return (row) => {
    if (last) last.setAttribute("d", "M0 0");
    last = row === null ? null : lines().get(row)?.() ?? null;
  };
};
links.push(follow(() => curveLines));

// ---- parallel coordinates: one plot a method, an axis a setting, the objective last ----
const parallelPlace = byId("parallel");
let parallelLines = new Map();
const drawParallel = (onPoint) => {
  if (!parallelPlace) return;
  parallelLines = new Map();
  const items = data.parallel.map((part, m) => ({ ...part, method: m }));
  const drawn = panelsOf(parallelPlace, items.filter((item) => item.lines.length && shown[item.method]), (item) => data.methods[item.method].label);
  for (const [{ method, axes, lines }, holder] of drawn) {
    holder.classList.add("parallel");
    const width = Math.max(280, holder.clientWidth);
    const count = axes.length + 1;
    const gap = (width - 90) / Math.max(1, count - 1);
    const crowded = gap < 130;
    const top = crowded ? 42 : 26;
    const height = top + 190;
    const bottom = height - 20;
    const X = (i) => 30 + i * gap;
    const Y = (share) => bottom - share * (bottom - top);
    const label = `${axes.map((axis) => axis.name).join(", ")} and objective of ${lines.length} trials of ${data.methods[method].label}`;
    const small = element("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": label }, holder);
    element("title", {}, small, label);
    const places = (line) => line.at.map((share, i) => (share === null ? null : [X(i), Y(share)])).filter(Boolean);
    const order = [...lines].sort((a, b) => a.at[count - 1] - b.at[count - 1]);
    const levels = [["faint", 0, 0.5], ["middle", 0.5, 0.9], ["strong", 0.9, 1]];
    for (const [level, from, to] of levels) {
      const some = order.slice(Math.floor(from * order.length), Math.floor(to * order.length));
      if (some.length) element("path", { class: `line ${level}`, d: some.map((line) => pathOf(places(line))).join("") }, small);
    }
    for (const line of lines.filter((one) => one.best)) element("path", { class: "line best", d: pathOf(places(line)) }, small);
    const all = [...axes, { name: "objective", low: 0, high: 1, lowText: "0", highText: "1", log: false }];
    all.forEach((axis, i) => {
      const x = X(i);
      element("line", { class: "upright", x1: x, x2: x, y1: top, y2: bottom }, small);
      if (axis.log) {
        for (let power = Math.ceil(Math.log10(axis.low)); 10 ** power <= axis.high; power++) {
          const y = Y(Math.log(10 ** power / axis.low) / Math.log(axis.high / axis.low));
          element("line", { class: "upright", x1: x - 4, x2: x + 4, y1: y, y2: y }, small);
        }
      }
      const anchor = i === 0 ? "start" : i === count - 1 ? "end" : "middle";
      const at = i === 0 ? 0 : i === count - 1 ? width : x;
      const name = axis.log && !crowded ? `${axis.name} (log)` : axis.name;
      element("text", { class: "axis", x: at, y: crowded && i % 2 ? 28 : 12, "text-anchor": anchor }, small, name);
      element("text", { class: "tick halo", x: x + 6, y: top + 10 }, small, axis.highText);
      element("text", { class: "tick halo", x: x + 6, y: bottom - 2 }, small, axis.lowText);
    });
    const over = element("path", { class: "line over", d: "M0 0" }, small);
    for (const line of lines) parallelLines.set(line.row, () => { over.setAttribute("d", pathOf(places(line))); return over; });
    const nearestLine = (event) => {
      const area = small.getBoundingClientRect();
      const [x, y] = [event.clientX - area.left, event.clientY - area.top];
      const i = Math.min(count - 2, Math.max(0, Math.floor((x - X(0)) / gap)));
      const share = (x - X(i)) / gap;
      let best = null;
      let distance = event.pointerType === "touch" ? 26 : 12;
      for (const line of lines) {
        if (line.at[i] === null || line.at[i + 1] === null) continue;
        const away = Math.abs(Y(line.at[i] + share * (line.at[i + 1] - line.at[i])) - y);
        if (away < distance) { best = line; distance = away; }
      }
      return best && { row: best.row, x, y: y + small.offsetTop };
    };
    holder.addEventListener("pointermove", (event) => { if (event.pointerType !== "touch") onPoint(holder, nearestLine(event)); });
    holder.addEventListener("pointerleave", () => onPoint(holder, null));
    holder.addEventListener("click", (event) => onPoint(holder, nearestLine(event)));
  }
};
links.push(follow(() => parallelLines));

// ---- finalists over seeds: mean, standard deviation and range ----
const drawIntervals = () => {
  const place = byId("intervals");
  if (!place) return;
  const isShown = (row) => shown[row.method];
  const drawn = panelsOf(place, data.intervals.filter((part) => part.rows.some(isShown)), (part) => part.label);
  for (const [{ label, rows: every }, holder] of drawn) {
    const rows = every.filter(isShown);
    const known = rows.flatMap((r) => [r.min ?? r.mean, r.max ?? r.mean, r.mean - (r.std ?? 0), r.mean + (r.std ?? 0)]);
    const pad = Math.max(0.005, (Math.max(...known) - Math.min(...known)) * 0.08);
    const xs = [Math.min(...known) - pad, Math.max(...known) + pad];
    const left = 20 + 7.5 * Math.max(...rows.map((row) => row.label.length));
    const { small, X, Y } = frame(holder, {
      height: 40 + 30 * rows.length, left, xs, ys: [rows.length - 0.5, -0.5], xTicks: ticks(xs[0], xs[1], 3), yTicks: [],
      about: `${label} over the seeds: ${rows.map((r) => `${r.label} ${r.mean.toPrecision(3)}`).join(", ")}`,
    });
    rows.forEach((row, i) => {
      const y = Y(i);
      const group = element("g", { class: `interval m${row.method}` }, small);
      element("line", { class: "grid", x1: left, x2: X(xs[1]), y1: y, y2: y }, group);
      element("text", { class: "named", x: left - 6, y: y + 4, "text-anchor": "end" }, group, row.label);
      if (row.min !== null && row.max !== null) element("line", { class: "whisker", x1: X(row.min), x2: X(row.max), y1: y, y2: y }, group);
      if (row.std !== null) element("line", { class: "whisker thick", x1: X(row.mean - row.std), x2: X(row.mean + row.std), y1: y, y2: y }, group);
      mark(group, row.method, X(row.mean), y, 5.5, "mark front");
    });
  }
};

// ---- the expected best of n trials ----
const drawBudgets = () => {
  const place = byId("budgets");
  if (!place) return;
  const lines = data.budgets.filter((line) => shown[line.method]);
  if (!lines.length) { clear(place); return; }
  const [[, holder]] = panelsOf(place, [lines], () => "Expected best objective by trials a method");
  const most = Math.max(2, ...lines.map((line) => line.points[line.points.length - 1][0]));
  const top = Math.max(0.05, ...lines.flatMap((line) => line.points.map((p) => p[3]))) * 1.05;
  const whole = Math.floor(Math.log2(most));
  const doublings = Array.from({ length: whole + 1 }, (_, k) => [k, String(2 ** k)]);
  if (Math.log2(most) - whole > 0.2) doublings.push([Math.log2(most), String(most)]);
  const { small, X, Y } = frame(holder, {
    height: 260, left: 40, xs: [0, Math.log2(most)], ys: [0, top], xTicks: doublings, yTicks: ticks(0, top, 4),
    about: `Expected best objective: ${lines.map((line) => `${data.methods[line.method].label} ${line.points[line.points.length - 1][1].toPrecision(3)} of ${line.points.length} trials`).join(", ")}`,
  });
  drawBands(holder, small, lines, (p) => X(Math.log2(p[0])), Y);
};
const drawBands = (holder, small, lines, across, Y) => {
  for (const line of lines) {
    const at = (k) => line.points.map((p) => [across(p), Y(p[k])]);
    const group = element("g", { class: `m${line.method}` }, small);
    element("path", { class: "band", d: `${pathOf([...at(2), ...at(3).reverse()])}Z` }, group);
    element("path", { class: "line best", d: pathOf(at(1)), ...dashed(line.method) }, group);
  }
  key(holder, lines.map((line) => line.method));
};

// ---- forget against the level of utility that is held ----
const drawLevels = () => {
  const place = byId("levels");
  if (!place) return;
  const parts = data.levels.map((part) => ({ ...part, lines: part.lines.filter((line) => shown[line.method]) }));
  for (const [{ label, lines }, holder] of panelsOf(place, parts.filter((part) => part.lines.length), (part) => `Forget by utility held, ${part.label}`)) {
    const held = [...new Set(lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
    const values = lines.flatMap((line) => line.points.flatMap((p) => [p[1], p[2], p[3]]));
    const ys = [Math.min(0, ...values), Math.max(0.05, ...values) * 1.05];
    const pad = Math.max(0.01, (held[held.length - 1] - held[0]) * 0.04);
    const { small, X, Y } = frame(holder, {
      height: 260, left: 40, xs: [held[0] - pad, held[held.length - 1] + pad], ys, xTicks: held.map((x) => [x, String(x)]), yTicks: ticks(ys[0], ys[1], 4),
      about: `Forget by utility held, ${label}: ${lines.map((line) => `${data.methods[line.method].label} ${line.points.map((p) => `${p[1].toPrecision(3)} at ${p[0]}`).join(", ")}`).join("; ")}`,
    });
    drawBands(holder, small, lines, (p) => X(p[0]), Y);
    for (const line of lines) for (const p of line.points) mark(small, line.method, X(p[0]), Y(p[1]), 4, "dot");
  }
};

// ---- the weights of the forget loss ----
const drawWeights = () => {
  const [first, second] = [byId("thirds-figure"), byId("epochs-figure")];
  if (!first) return;
  const isShown = (row) => shown[row.method];
  const parts = data.weighting.thirds.filter((part) => part.rows.some(isShown));
  for (const [{ label, names, rows: every }, holder] of panelsOf(first, parts, (part) => `Weight by ${part.label}`)) {
    const rows = every.filter(isShown);
    const top = Math.max(1.2, ...rows.flatMap((row) => row.points.flat())) * 1.05;
    const { small, X, Y, box } = frame(holder, {
      height: 230, xs: [-0.5, 2.5], ys: [0, top], xTicks: names.map((name, i) => [i, name]), yTicks: ticks(0, top, 4),
      about: `Weight of an example by ${label}: ${rows.map((row) => `${data.methods[row.method].label} ${row.points.map((p) => p[0].toFixed(2)).join(", ")}`).join("; ")}`,
    });
    element("line", { class: "even", x1: box.left, x2: box.right, y1: Y(1), y2: Y(1) }, small);
    rows.forEach((row, k) => {
      const shift = (k - (rows.length - 1) / 2) * Math.min(0.16, 0.7 / rows.length);
      const group = element("g", { class: `m${row.method}` }, small);
      element("path", { class: "line thin", d: pathOf(row.points.map((p, i) => [X(i + shift), Y(p[0])])), ...dashed(row.method) }, group);
      row.points.forEach(([mean, low, high], i) => {
        element("line", { class: "whisker", x1: X(i + shift), x2: X(i + shift), y1: Y(low), y2: Y(high) }, group);
        mark(group, row.method, X(i + shift), Y(mean), 5, "mark front");
      });
    });
    key(holder, rows.map((row) => row.method));
  }
  const lines = data.weighting.evenness.filter(isShown);
  const panels = [...(lines.length ? [{ lines }] : []), ...data.weighting.shares.filter(isShown)];
  const titleOf = (part) => (part.lines ? "Evenness" : `${data.methods[part.method].label}: shares by ${part.label}`);
  for (const [part, holder] of panelsOf(second, panels, titleOf)) {
    const epochs = part.lines ? part.lines.flatMap((line) => line.points.map((p) => p[0])) : part.epochs;
    const xs = [Math.min(...epochs), Math.max(...epochs)];
    const whole = ticks(xs[0], xs[1], 4).filter(([value]) => Number.isInteger(value));
    const values = part.lines ? part.lines.flatMap((line) => line.points.map((p) => p[1])) : part.series.flat();
    const ys = part.lines ? [Math.min(0.95, ...values), 1] : [0, Math.max(0.5, ...values)];
    const { small, X, Y, box } = frame(holder, {
      height: 200, xs, ys, left: 40, right: part.lines ? 12 : 54, xTicks: whole, yTicks: ticks(ys[0], ys[1], 3), about: `${titleOf(part)} by epoch`,
    });
    if (part.lines) {
      for (const line of part.lines) {
        const places = line.points.map(([x, y]) => [X(x), Y(y)]);
        element("path", { class: `line best m${line.method}`, d: pathOf(places), ...dashed(line.method) }, small);
        for (const [x, y] of places) mark(small, line.method, x, y, 3.5, "dot");
      }
      key(holder, part.lines.map((line) => line.method));
      continue;
    }
    element("line", { class: "even", x1: box.left, x2: box.right, y1: Y(1 / 3), y2: Y(1 / 3) }, small);
    const ends = part.series.map((series, k) => ({ k, y: Y(series[series.length - 1]) })).sort((a, b) => a.y - b.y);
    ends.forEach((end, i) => { if (i) end.y = Math.max(end.y, ends[i - 1].y + 13); });
    part.series.forEach((series, k) => {
      const places = series.map((value, i) => [X(part.epochs[i]), Y(value)]);
      element("path", { class: "line best", d: pathOf(places), "stroke-dasharray": ["none", "7 4", "2 3"][k] }, small);
    });
    for (const { k, y } of ends) element("text", { class: "tick", x: box.right + 4, y: y + 4 }, small, part.names[k]);
  }
};
const key = (holder, members) => {
  const list = document.createElement("p");
  list.className = "keys";
  for (const m of members) {
    const item = document.createElement("span");
    const small = element("svg", { width: 30, height: 12, viewBox: "-15 -6 30 12", "aria-hidden": "true", class: `m${m}` }, item);
    element("path", { class: "line best", d: "M-15 0H15", ...dashed(m) }, small);
    mark(small, m, 0, 0, 4, "dot");
    item.append(data.methods[m].label);
    list.append(item);
  }
  holder.append(list);
};
