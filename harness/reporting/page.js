// What moves on the report's page: charts drawn as SVG from one JSON document, tooltips, pinned details, crops, maps.
// No library, and nothing is loaded. All text of records goes through textContent.
(function () {
  "use strict";
  var NS = "http://www.w3.org/2000/svg";
  var page = document.getElementById("data");
  var data = page ? JSON.parse(page.textContent) : null;
  var started = performance.now();

  // ---- theme -------------------------------------------------------------------------------------------------------
  var root = document.documentElement, themes = ["auto", "light", "dark"];
  var themeButton = document.getElementById("theme");
  function setTheme(name) {
    if (name === "auto") root.removeAttribute("data-theme"); else root.setAttribute("data-theme", name);
    themeButton.textContent = { auto: "Theme: system", light: "Theme: light", dark: "Theme: dark" }[name];
    themeButton.dataset.theme = name;
    try { localStorage.setItem("harness-theme", name); } catch (error) { /* files may have no storage */ }
  }
  if (themeButton) {
    var known = "auto";
    try { known = localStorage.getItem("harness-theme") || "auto"; } catch (error) { /* the same */ }
    themeButton.hidden = false;
    setTheme(themes.indexOf(known) < 0 ? "auto" : known);
    themeButton.addEventListener("click", function () {
      setTheme(themes[(themes.indexOf(themeButton.dataset.theme) + 1) % 3]);
    });
  }

  // ---- small tools -------------------------------------------------------------------------------------------------
  function html(tag, attributes, children) {
    var node = document.createElement(tag);
    for (var name in attributes || {}) {
      if (name === "text") node.textContent = attributes[name]; else node.setAttribute(name, attributes[name]);
    }
    (children || []).forEach(function (child) { node.appendChild(child); });
    return node;
  }
  function svg(tag, attributes) {
    var node = document.createElementNS(NS, tag);
    for (var name in attributes || {}) {
      if (name === "text") node.textContent = attributes[name]; else node.setAttribute(name, attributes[name]);
    }
    return node;
  }
  function fixed(value) { return Math.round(value * 10) / 10; }
  function write(value) {
    if (value === null || value === undefined) return "–";
    var size = Math.abs(value);
    if (size >= 1000) return value.toLocaleString("en", { maximumFractionDigits: 0 });
    return String(+value.toPrecision(size >= 100 ? 4 : size >= 10 ? 4 : 3));
  }
  function writeTick(value) { // ticks are round, and neighbours may differ in a late digit
    return Math.abs(value) >= 1000 ? write(value) : String(+value.toPrecision(6));
  }
  function writeValue(axis, value) {
    if (value === null || value === undefined) return "–";
    if (axis.key === "psnr_db") return value.toFixed(3);
    if (axis.key === "ssim" || axis.key === "attention_share") return value.toFixed(4);
    return write(value);
  }

  // ---- scales ------------------------------------------------------------------------------------------------------
  function linearTicks(low, high, wanted) {
    var step = Math.pow(10, Math.floor(Math.log10((high - low) / wanted)));
    var rest = (high - low) / wanted / step;
    step *= rest >= 5 ? 10 : rest >= 2 ? 5 : rest >= 1 ? 2 : 1;
    var ticks = [], first = Math.ceil(low / step - 1e-9);
    for (var index = first; index * step <= high + step * 1e-9; index++) ticks.push(+(index * step).toPrecision(12));
    return ticks;
  }
  function logTicks(low, high) {
    var ticks = [], steps = high / low < 30 ? [1, 2, 3, 5] : high / low < 1e3 ? [1, 2, 5] : [1];
    for (var decade = Math.floor(Math.log10(low)); decade <= Math.ceil(Math.log10(high)); decade++) {
      steps.forEach(function (step) {
        var tick = +(step * Math.pow(10, decade)).toPrecision(12);
        if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push(tick);
      });
    }
    return ticks;
  }
  function makeScale(values, from, to, options) {
    options = options || {};
    var low = Math.min.apply(null, values), high = Math.max.apply(null, values);
    if (!values.length) { low = 0; high = 1; }
    var positive = values.filter(function (one) { return one > 0; });
    if (options.log === undefined && low === 0 && positive.length > 1 && values.length - positive.length < positive.length / 4) {
      var least = Math.min.apply(null, positive); // what costs nothing has no place on a log scale
      if (high / least > 8) low = least;
    }
    var isLog = options.log === true || (options.log !== false && low > 0 && high / low > 8);
    if (low === high) { var pad = Math.abs(low) * 0.05 || 0.5; low -= pad; high += pad; if (isLog && low <= 0) isLog = false; }
    var margin = options.margin === undefined ? 0.06 : options.margin;
    var map, ticks;
    if (isLog) {
      var a = Math.log(low), b = Math.log(high), room = (b - a) * margin;
      a -= room; b += room;
      map = function (value) { return value > 0 ? from + (Math.log(value) - a) / (b - a) * (to - from) : NaN; };
      ticks = logTicks(Math.exp(a), Math.exp(b));
      if (ticks.length < 2) ticks = linearTicks(Math.exp(a), Math.exp(b), 4).filter(function (tick) { return tick > 0; });
    } else {
      var more = (high - low) * margin;
      if (!(options.zero && low === 0)) low -= more;
      high += more;
      map = function (value) { return from + (value - low) / (high - low) * (to - from); };
      ticks = linearTicks(low, high, options.ticks || Math.max(2, Math.min(7, Math.abs(to - from) / 75)));
    }
    return { map: map, ticks: ticks, log: isLog };
  }
  function thin(ticks, map, least) { // no two labels over one another
    var kept = [], last = null;
    ticks.forEach(function (tick) {
      var at = map(tick);
      if (last === null || Math.abs(at - last) >= least) { kept.push(tick); last = at; }
    });
    return kept;
  }

  // ---- frames ------------------------------------------------------------------------------------------------------
  function frame(holder, label) {
    holder.textContent = "";
    var width = Math.max(240, holder.clientWidth || 600), height = holder.clientHeight || 320;
    var drawn = svg("svg", {
      width: width, height: height, viewBox: "0 0 " + width + " " + height, role: "img", "aria-label": label
    });
    holder.appendChild(drawn);
    return { node: drawn, width: width, height: height, left: 62, right: width - 12, top: 12, bottom: height - 46, label: label };
  }
  function drawAxes(box, x, y, xLabel, yLabel) {
    var axes = svg("g", { "class": "axes" });
    thin(x.ticks, x.map, 40).forEach(function (tick) {
      var at = fixed(x.map(tick));
      if (at < box.left - 1 || at > box.right + 1) return;
      axes.appendChild(svg("line", { x1: at, x2: at, y1: box.top, y2: box.bottom, "class": "grid" }));
      axes.appendChild(svg("text", { x: at, y: box.bottom + 16, "class": "tick middle", text: writeTick(tick) }));
    });
    thin(y.ticks, y.map, 20).forEach(function (tick) {
      var at = fixed(y.map(tick));
      if (at < box.top - 1 || at > box.bottom + 1) return;
      axes.appendChild(svg("line", { x1: box.left, x2: box.right, y1: at, y2: at, "class": "grid" }));
      axes.appendChild(svg("text", { x: box.left - 8, y: at + 4, "class": "tick end", text: writeTick(tick) }));
    });
    axes.appendChild(svg("line", { x1: box.left, x2: box.right, y1: box.bottom, y2: box.bottom, "class": "base" }));
    var middle = (box.top + box.bottom) / 2;
    axes.appendChild(title("x", (box.left + box.right) / 2, box.bottom + 36, xLabel + (x.log ? ", log scale" : ""), null, box.right - box.left + 50));
    axes.appendChild(title("y", 14, middle, yLabel + (y.log ? ", log scale" : ""), "rotate(-90 14 " + middle + ")", box.bottom - box.top + 30));
    box.node.appendChild(axes);
  }
  function title(which, x, y, text, turn, room) {
    var node = svg("text", { x: fixed(x), y: fixed(y), "class": "title middle", "data-axis": which, text: text });
    if (turn) node.setAttribute("transform", turn);
    if (text.length * 6.7 > room) node.setAttribute("style", "font-size:" + Math.max(9, 12.5 * room / (text.length * 6.7)).toFixed(1) + "px");
    return node;
  }

  // ---- tooltip -----------------------------------------------------------------------------------------------------
  var tip = html("div", { id: "tip", role: "status", hidden: "" });
  document.body.appendChild(tip);
  function showTip(lines, x, y) { // lines: [text, class] or [name, value]
    tip.textContent = "";
    lines.forEach(function (line) {
      if (line.name !== undefined) {
        tip.appendChild(html("div", { "class": "pair" }, [html("span", { text: line.name }), html("b", { text: line.value })]));
      } else tip.appendChild(html("div", { "class": line.kind || "", text: line.text }));
    });
    tip.hidden = false;
    var wide = tip.offsetWidth, high = tip.offsetHeight;
    var left = x + 16 + wide > window.innerWidth ? x - 16 - wide : x + 16;
    var top = y + 14 + high > window.innerHeight ? window.innerHeight - high - 6 : y + 14;
    tip.style.left = Math.max(6, Math.min(left, window.innerWidth - wide - 6)) + "px";
    tip.style.top = Math.max(6, top) + "px";
  }
  function hideTip() { tip.hidden = true; }

  if (!data) return;
  var axes = data.axes, points = data.points, networks = data.networks, kinds = data.kinds;
  var FRONT = 0, OTHER = 1, VIOLATING = 2, STOPPED = 3, REJECTED = 4, FAILED = 5, BASELINE = 6, PUBLISHED = 7;
  var kindNames = ["on the front", "not on the front", "violates a constraint", "stopped while training",
    "rejected before training", "failed", "baseline", "published"];
  var visible = {};
  visible[FRONT] = visible[OTHER] = visible[VIOLATING] = visible[BASELINE] = true;

  function nameOf(point) {
    var network = networks[point.n];
    return network.trial === null ? network.label : "trial " + network.trial;
  }
  function describe(point, short) {
    var network = networks[point.n], lines = [{ text: network.label, kind: "name" }];
    if (point.r) lines.push({ text: point.r });
    var state = point.k === BASELINE || point.k === PUBLISHED ? kindNames[point.k] : nameOf(point) + " · " + kindNames[point.k];
    if (data.knee !== null && points[data.knee] === point) state += " · knee";
    lines.push({ text: state, kind: "soft" });
    if (point.note && point.note !== kindNames[point.k]) lines.push({ text: point.note, kind: "soft" });
    axes.forEach(function (axis, index) {
      if (point.v[index] !== null) lines.push({ name: axis.label, value: writeValue(axis, point.v[index]) });
    });
    network.config.forEach(function (line) { lines.push({ name: line[0], value: line[1] }); });
    if (network.reason && !short) lines.push({ text: network.reason, kind: "soft" });
    return lines;
  }

  // ---- marks -------------------------------------------------------------------------------------------------------
  var shapes = {};
  shapes[FRONT] = "M-4.6 0a4.6 4.6 0 1 0 9.2 0a4.6 4.6 0 1 0-9.2 0z";
  shapes[OTHER] = "M-3.2 0a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0-6.4 0z";
  shapes[VIOLATING] = "M-3.4-3.4L3.4 3.4M3.4-3.4L-3.4 3.4";
  shapes[STOPPED] = "M-4.6-3.6H4.6L0 4.4z";
  shapes[REJECTED] = "M-4.4 0H4.4M0-4.4V4.4";
  shapes[FAILED] = "M-4-4L4 4M4-4L-4 4M-4.4 0H4.4";
  shapes[BASELINE] = "M0-7L7 0L0 7L-7 0z";
  shapes[PUBLISHED] = "M-4.2-4.2H4.2V4.2H-4.2z";
  var STAR = "M0-10L2.6-3.4 9.5-3.1 4.1 1.2 5.9 8.1 0 4.2-5.9 8.1-4.1 1.2-9.5-3.1-2.6-3.4z";
  var isQuality = function (axis) { return axes[axis].quality; };

  // Points that no other beats in two measures; only what is measured and keeps the constraints takes part.
  function bestPair(indices, x, y) {
    var chosen = indices.filter(function (index) { return points[index].k <= OTHER; });
    var sx = axes[x].better, sy = axes[y].better;
    chosen.sort(function (a, b) {
      return sx * (points[b].v[x] - points[a].v[x]) || sy * (points[b].v[y] - points[a].v[y]);
    });
    var best = -Infinity, kept = [];
    chosen.forEach(function (index) {
      var value = sy * points[index].v[y];
      if (value > best) { kept.push(index); best = value; }
    });
    return kept;
  }

  var charts = [], pinned = null, hovered = null;

  function Scatter(holder, x, y) {
    this.holder = holder; this.x = x; this.y = y; this.placed = [];
    holder.tabIndex = 0;
    holder.setAttribute("role", "group");
    var self = this;
    holder.addEventListener("pointermove", function (event) { self.point(event); });
    holder.addEventListener("pointerleave", function () { hover(null); });
    holder.addEventListener("click", function (event) { self.point(event); if (hovered !== null) pin(hovered); if (event.pointerType === "touch") hideTip(); });
    holder.addEventListener("keydown", function (event) { self.key(event); });
    holder.addEventListener("blur", function () { hover(null); });
  }
  Scatter.prototype.draw = function () {
    var x = this.x, y = this.y, self = this;
    var box = this.box = frame(this.holder, axes[y].label + " against " + axes[x].label + ": one mark for each point");
    this.holder.setAttribute("aria-label", axes[y].label + " against " + axes[x].label + "; arrow keys go from point to point, Enter shows its details");
    var whole = [], strip = [];
    points.forEach(function (point, index) {
      if (!visible[point.k]) return;
      var hasX = point.v[x] !== null, hasY = point.v[y] !== null;
      if (hasX && hasY) whole.push(index);
      else if ((hasX || hasY) && point.k >= STOPPED && point.k <= FAILED) strip.push(index);
    });
    var levels = []; // bicubic costs next to nothing: a line at its quality, rather than a mark far from all others
    var level = function (point) {
      return point.k === BASELINE && networks[point.n].label === "bicubic" && isQuality(y) && !isQuality(x);
    };
    whole = whole.filter(function (index) {
      if (level(points[index])) { levels.push(index); return false; }
      return true;
    });
    var onX = strip.filter(function (index) { return points[index].v[x] !== null; });
    var onY = strip.filter(function (index) { return points[index].v[y] !== null; });
    if (onX.length) box.bottom -= 18;
    if (onY.length) box.left += 18;
    var values = function (axis, some) { return some.map(function (index) { return points[index].v[axis]; }); };
    var across = function (some) { return makeScale(values(x, some.concat(onX)), box.left, box.right, { log: isQuality(x) ? false : undefined }); };
    var up = function (some) { return makeScale(values(y, some.concat(onY, levels)), box.bottom, box.top, { log: isQuality(y) ? false : undefined, ticks: 5 }); };
    var xs = across(whole), ys = up(whole);
    var fits = whole.filter(function (index) { return isFinite(xs.map(points[index].v[x])) && isFinite(ys.map(points[index].v[y])); });
    if (fits.length < whole.length) { xs = across(fits); ys = up(fits); }
    var low = { left: box.left - (onY.length ? 18 : 0), bottom: box.bottom + (onX.length ? 18 : 0) };
    drawAxes({ node: box.node, left: box.left, right: box.right, top: box.top, bottom: box.bottom }, xs, ys, axes[x].label, axes[y].label);
    if (onX.length) {
      box.node.querySelectorAll(".tick.middle").forEach(function (node) { node.setAttribute("y", low.bottom + 16); });
      box.node.querySelector('[data-axis="x"]').setAttribute("y", low.bottom + 36);
      box.node.appendChild(svg("rect", { x: box.left, y: box.bottom, width: box.right - box.left, height: 18, "class": "strip" }));
      box.node.appendChild(svg("text", { x: box.right - 4, y: box.bottom + 13, "class": "note end", text: "no " + axes[y].name }));
    }
    if (onY.length) {
      box.node.querySelectorAll(".tick.end").forEach(function (node) { node.setAttribute("x", low.left - 8); });
      box.node.appendChild(svg("rect", { x: low.left, y: box.top, width: 18, height: box.bottom - box.top, "class": "strip" }));
      box.node.appendChild(svg("text", { x: low.left + 13, y: box.top + 4, "class": "note end", transform: "rotate(-90 " + (low.left + 13) + " " + (box.top + 4) + ")", text: "no " + axes[x].name }));
    }
    levels.forEach(function (index) {
      var at = fixed(ys.map(points[index].v[y]));
      box.node.appendChild(svg("line", { x1: box.left, x2: box.right, y1: at, y2: at, "class": "level" }));
    });
    var placed = this.placed = [];
    whole.forEach(function (index) {
      var point = points[index], at = [xs.map(point.v[x]), ys.map(point.v[y]), index];
      if (isFinite(at[0]) && isFinite(at[1])) placed.push(at);
    });
    onX.forEach(function (index) { placed.push([xs.map(points[index].v[x]), box.bottom + 9, index]); });
    onY.forEach(function (index) { placed.push([low.left + 9, ys.map(points[index].v[y]), index]); });
    var line = bestPair(whole, x, y).map(function (index) {
      return fixed(xs.map(points[index].v[x])) + " " + fixed(ys.map(points[index].v[y]));
    });
    var order = [VIOLATING, OTHER, REJECTED, FAILED, STOPPED, PUBLISHED];
    var group = svg("g", { "class": "points" });
    var marks = function (kind) {
      placed.forEach(function (at) {
        var point = points[at[2]];
        if (point.k !== kind) return;
        group.appendChild(svg("path", {
          d: shapes[kind], transform: "translate(" + fixed(at[0]) + " " + fixed(at[1]) + ")", "class": "pt " + kinds[kind]
        }));
      });
    };
    order.forEach(marks);
    if (line.length > 1) group.appendChild(svg("path", { d: "M" + line.join("L"), "class": "frontline" }));
    [FRONT, BASELINE].forEach(marks);
    var lost = whole.length - placed.filter(function (at) { return points[at[2]].v[x] !== null && points[at[2]].v[y] !== null; }).length;
    if (lost) box.node.appendChild(svg("text", { x: box.right - 4, y: box.bottom - 6, "class": "note end", text: lost === 1 ? "one mark at 0 is not on a log scale" : lost + " marks at 0 are not on a log scale" }));
    placed.forEach(function (at) {
      if (at[2] === data.knee) {
        group.appendChild(svg("path", { d: STAR, transform: "translate(" + fixed(at[0]) + " " + fixed(at[1]) + ")", "class": "star" }));
      }
    });
    box.node.appendChild(group);
    levels.forEach(function (index) {
      var label = "bicubic " + writeValue(axes[y], points[index].v[y]);
      box.node.appendChild(svg("text", { x: box.right - 4, y: fixed(ys.map(points[index].v[y])) - 5, "class": "label level end", text: label }));
    });
    placed.forEach(function (at) {
      var point = points[at[2]];
      if (point.k !== BASELINE) return;
      var end = at[0] > (box.left + box.right) / 2;
      box.node.appendChild(svg("text", {
        x: fixed(at[0] + (end ? -11 : 11)), y: fixed(at[1] + 4), "class": "label baseline" + (end ? " end" : ""), text: networks[point.n].label
      }));
    });
    this.ring = svg("path", { "class": "ring", d: "M-9 0a9 9 0 1 0 18 0a9 9 0 1 0-18 0z", visibility: "hidden" });
    this.pinRing = svg("path", { "class": "ring pinned", d: "M-9 0a9 9 0 1 0 18 0a9 9 0 1 0-18 0z", visibility: "hidden" });
    box.node.appendChild(this.ring); box.node.appendChild(this.pinRing);
    if (!placed.length) box.node.appendChild(svg("text", { x: (box.left + box.right) / 2, y: (box.top + box.bottom) / 2, "class": "note middle", text: "nothing was measured of both" }));
    this.mark(this.pinRing, pinned);
    self.holder.dataset.drawn = placed.length + levels.length;
  };
  Scatter.prototype.mark = function (ring, index) {
    var at = index === null ? null : this.placed.filter(function (place) { return place[2] === index; })[0];
    ring.setAttribute("visibility", at ? "visible" : "hidden");
    if (at) ring.setAttribute("transform", "translate(" + fixed(at[0]) + " " + fixed(at[1]) + ")");
    return at;
  };
  Scatter.prototype.point = function (event) {
    var bounds = this.box.node.getBoundingClientRect(), x = event.clientX - bounds.left, y = event.clientY - bounds.top;
    var best = null, least = 26 * 26;
    this.placed.forEach(function (at) {
      var distance = (at[0] - x) * (at[0] - x) + (at[1] - y) * (at[1] - y);
      if (points[at[2]].k === FRONT || points[at[2]].k === BASELINE) distance *= 0.6;
      if (distance < least) { least = distance; best = at[2]; }
    });
    hover(best, event.clientX, event.clientY);
  };
  Scatter.prototype.key = function (event) {
    var step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (event.key === "Enter" && hovered !== null) { pin(hovered); event.preventDefault(); }
    if (event.key === "Escape") hover(null);
    if (!step) return;
    event.preventDefault();
    var order = this.placed.slice().sort(function (a, b) { return a[0] - b[0] || a[1] - b[1]; });
    if (!order.length) return;
    var place = order.map(function (at) { return at[2]; }).indexOf(hovered);
    place = place < 0 ? (step > 0 ? 0 : order.length - 1) : (place + step + order.length) % order.length;
    var bounds = this.box.node.getBoundingClientRect();
    hover(order[place][2], bounds.left + order[place][0], bounds.top + order[place][1]);
  };
  function hover(index, x, y) {
    hovered = index;
    charts.forEach(function (chart) { chart.mark(chart.ring, index); });
    if (index === null) { hideTip(); highlight(pinned); return; }
    showTip(describe(points[index], true), x, y);
    highlight(index);
  }

  // ---- pinned details ----------------------------------------------------------------------------------------------
  var card = document.getElementById("pinned");
  function commandFor(point) {
    if (point.id) return card.dataset.command + " --pick point:" + point.id;
    return null;
  }
  function pin(index) {
    pinned = index;
    charts.forEach(function (chart) { chart.mark(chart.pinRing, index); });
    var point = points[index], network = networks[point.n];
    card.textContent = "";
    var close = html("button", { type: "button", "class": "close", "aria-label": "unpin", text: "×" });
    close.addEventListener("click", unpin);
    card.appendChild(close);
    card.appendChild(html("h3", { text: network.label + (point.r ? ", " + point.r : "") }));
    card.appendChild(html("p", { "class": "soft", text: (network.trial === null ? "" : "trial " + network.trial + " · ") + kindNames[point.k] + (network.id ? " · network " + network.id : "") + (point.note ? " · " + point.note : "") }));
    var lists = html("div", { "class": "lists" });
    var list = function (rows) {
      var node = html("dl");
      rows.forEach(function (row) { node.appendChild(html("dt", { text: row[0] })); node.appendChild(html("dd", { text: row[1] })); });
      lists.appendChild(node);
    };
    list(axes.map(function (axis, at) { return [axis.label, point.v[at] === null ? "–" : writeValue(axis, point.v[at])]; })
      .filter(function (row) { return row[1] !== "–"; }));
    list(network.config);
    card.appendChild(lists);
    if (network.reason) card.appendChild(html("p", { text: network.reason }));
    var commands = [];
    if (point.k <= VIOLATING && network.trial !== null && network.state === "complete") {
      commands.push(card.dataset.command + " --pick trial:" + network.trial);
      if (commandFor(point)) commands.push(commandFor(point));
    }
    commands.forEach(function (command, at) {
      card.appendChild(html("p", { "class": "soft", text: at ? "exactly this point, with its routing:" : "export it, under the routing that its trial proposed:" }));
      card.appendChild(withCopy(command));
    });
    card.hidden = false;
    highlight(index);
  }
  function unpin() {
    pinned = null; card.hidden = true;
    charts.forEach(function (chart) { chart.mark(chart.pinRing, null); });
    highlight(null);
  }
  function withCopy(command) {
    var code = html("code", { text: command }), button = html("button", { type: "button", text: "copy" });
    button.addEventListener("click", function () { copy(command, button); });
    return html("div", { "class": "command" }, [code, button]);
  }
  function copy(text, button) {
    var done = function () { button.textContent = "copied"; setTimeout(function () { button.textContent = "copy"; }, 1500); };
    if (navigator.clipboard && window.isSecureContext) navigator.clipboard.writeText(text).then(done, function () {});
    else {
      var area = html("textarea", { "class": "away" });
      area.value = text; document.body.appendChild(area); area.select();
      try { document.execCommand("copy"); done(); } catch (error) { /* then by hand */ }
      area.remove();
    }
  }
  document.querySelectorAll("button[data-copy]").forEach(function (button) {
    button.hidden = false;
    button.addEventListener("click", function () { copy(button.dataset.copy, button); });
  });

  // ---- the fronts --------------------------------------------------------------------------------------------------
  var panels = document.getElementById("panels");
  if (panels) {
    data.panels.forEach(function (pair, index) {
      var holder = html("div", { "class": "chart", id: "front-" + index, "data-chart": "front" });
      panels.appendChild(holder);
      charts.push(new Scatter(holder, pair[0], pair[1]));
    });
    var across = document.getElementById("across"), up = document.getElementById("up");
    axes.forEach(function (axis, index) {
      [across, up].forEach(function (select) { select.appendChild(html("option", { value: index, text: axis.label + (axis.objective ? " ★" : "") })); });
    });
    var objectives = axes.map(function (axis, index) { return index; }).filter(function (index) { return axes[index].objective; });
    var costs = objectives.filter(function (index) { return !axes[index].quality; });
    var start = costs.length > 1 ? [costs[0], costs[1]] : data.panels[0] || [Math.min(1, axes.length - 1), 0];
    across.value = start[0]; up.value = start[1];
    var explorer = new Scatter(document.getElementById("front-any"), start[0], start[1]);
    charts.push(explorer);
    var pairs = document.getElementById("pairs");
    objectives.forEach(function (a, i) {
      objectives.slice(i + 1).forEach(function (b) {
        var x = axes[a].quality ? b : a, y = axes[a].quality ? a : b;
        var button = html("button", { type: "button", text: axes[y].name + " / " + axes[x].name });
        button.addEventListener("click", function () { across.value = x; up.value = y; choose(); });
        pairs.appendChild(button);
      });
    });
    var choose = function () { explorer.x = +across.value; explorer.y = +up.value; explorer.draw(); };
    across.addEventListener("change", choose); up.addEventListener("change", choose);
    document.getElementById("swap").addEventListener("click", function () {
      var before = across.value; across.value = up.value; up.value = before; choose();
    });
    var toggles = document.getElementById("toggles");
    [OTHER, VIOLATING, STOPPED, REJECTED, FAILED, PUBLISHED].forEach(function (kind) {
      var count = points.filter(function (point) { return point.k === kind; }).length;
      if (!count) return;
      var input = html("input", { type: "checkbox", "data-kind": kinds[kind] });
      input.checked = !!visible[kind];
      var text = kindNames[kind];
      if (kind === PUBLISHED) text = data.published.same ? "published results" : "published results (" + data.published.dataset + ": other images, not comparable)";
      input.addEventListener("change", function () { visible[kind] = input.checked; drawFronts(); });
      toggles.appendChild(html("label", {}, [input, mark(kind), html("span", { text: text + " (" + count + ")" })]));
    });
  }
  function mark(kind) {
    var node = svg("svg", { width: 14, height: 14, viewBox: "-7.5 -7.5 15 15", "aria-hidden": "true" });
    node.appendChild(svg("path", { d: kind === -1 ? STAR : shapes[kind], "class": kind === -1 ? "star" : "pt " + kinds[kind], transform: kind === -1 ? "scale(.7)" : "" }));
    return node;
  }
  var legend = document.getElementById("legend");
  if (legend) {
    [[FRONT, "front: no other point is better in every objective"], [-1, "knee: the best compromise"], [BASELINE, "baseline"]].forEach(function (entry) {
      if (entry[0] === BASELINE && !points.some(function (point) { return point.k === BASELINE; })) return;
      legend.appendChild(html("span", {}, [mark(entry[0]), html("span", { text: entry[1] })]));
    });
  }
  function drawFronts() { charts.forEach(function (chart) { chart.draw(); }); }

  // ---- lines: what all charts of curves share ----------------------------------------------------------------------
  function Lines(holder, options) { this.holder = holder; this.options = options; this.bind(); }
  Lines.prototype.bind = function () {
    var self = this;
    this.holder.addEventListener("pointermove", function (event) {
      var bounds = self.box.node.getBoundingClientRect(), x = event.clientX - bounds.left, y = event.clientY - bounds.top;
      var best = null, least = 30 * 30;
      self.places.forEach(function (place) {
        var distance = (place[0] - x) * (place[0] - x) + (place[1] - y) * (place[1] - y);
        if (distance < least) { least = distance; best = place; }
      });
      self.nodes.forEach(function (node) { node.classList.remove("near"); });
      if (!best) { hideTip(); return; }
      self.nodes[best[2]].classList.add("near");
      self.nodes[best[2]].parentNode.appendChild(self.nodes[best[2]]);
      showTip(self.options.tell(self.options.series[best[2]], best[3]), event.clientX, event.clientY);
    });
    this.holder.addEventListener("pointerleave", function () {
      hideTip(); self.nodes.forEach(function (node) { node.classList.remove("near"); });
    });
  };
  Lines.prototype.draw = function () {
    var options = this.options, series = options.series, self = this;
    var box = this.box = frame(this.holder, options.y + " against " + options.x);
    var xs = [], ys = [];
    series.forEach(function (one) { one.at.forEach(function (place) { xs.push(place[0]); ys.push(place[1]); }); });
    if (options.level !== undefined && options.level !== null) ys.push(options.level.value);
    var x = makeScale(xs, box.left, box.right, { log: options.logX || false, margin: 0.03 });
    var y = makeScale(ys, box.bottom, box.top, { log: options.logY === undefined ? undefined : options.logY, ticks: 5 });
    drawAxes(box, x, y, options.x, options.y);
    if (options.level) {
      var at = fixed(y.map(options.level.value));
      box.node.appendChild(svg("line", { x1: box.left, x2: box.right, y1: at, y2: at, "class": "level " + (options.level.kind || "") }));
      box.node.appendChild(svg("text", { x: box.right - 4, y: at - 5, "class": "label end level " + (options.level.kind || ""), text: options.level.text }));
    }
    this.nodes = []; this.places = [];
    series.forEach(function (one, index) {
      var group = svg("g", { "class": "series " + one.kind });
      var path = "", before = null;
      one.at.forEach(function (place) {
        var px = fixed(x.map(place[0])), py = fixed(y.map(place[1]));
        path += before === null ? "M" + px + " " + py : (options.steps ? "H" + px + "V" + py : "L" + px + " " + py);
        before = place;
        self.places.push([px, py, index, place]);
      });
      group.appendChild(svg("path", { d: path, "class": "line" }));
      if (options.dots) one.at.forEach(function (place, at) {
        var last = at === one.at.length - 1, shape = last && options.ends ? options.ends(one) : null;
        group.appendChild(svg("path", {
          d: shape || shapes[OTHER], "class": "dot" + (shape ? " end" : ""),
          transform: "translate(" + fixed(x.map(place[0])) + " " + fixed(y.map(place[1])) + ")"
        }));
      });
      box.node.appendChild(group);
      self.nodes.push(group);
    });
    this.holder.dataset.drawn = series.length;
  };
  var curves = [];
  function addLines(id, options) {
    var holder = document.getElementById(id);
    if (!holder) return;
    var chart = new Lines(holder, options);
    curves.push(chart);
    return chart;
  }
  addLines("hypervolume", {
    x: "networks trained", y: "hypervolume (no unit)", steps: true, logY: false,
    series: [{ kind: "front", at: data.hypervolume }],
    tell: function (one, place) { return [{ text: place[2], kind: "name" }, { name: "networks trained", value: write(place[0]) }, { name: "hypervolume", value: String(place[1]) }]; }
  });
  if (data.rungs) addLines("rungs", {
    x: data.rungs.over, y: data.rungs.label, dots: true, logX: true, logY: false,
    series: data.rungs.ways.map(function (way) { return { kind: way.state, at: way.at, name: way.name }; }),
    ends: function (one) { return one.kind === "stopped" ? "M-4.5-4.5L4.5 4.5M4.5-4.5L-4.5 4.5" : one.kind === "failed" ? shapes[FAILED] : null; },
    tell: function (one, place) { return [{ text: one.name, kind: "name" }, { text: place[2] }, { name: data.rungs.label, value: place[1].toFixed(3) }, { text: one.kind === "complete" ? "trained to the end" : one.kind, kind: "soft" }]; }
  });
  if (data.training) addLines("training", {
    x: "training step", y: data.training.label, logY: true,
    series: data.training.curves.map(function (one) { return { kind: one.baseline ? "baseline" : one.state, at: one.at, name: one.name }; })
      .sort(function (a, b) { return (a.kind === "baseline") - (b.kind === "baseline"); }),
    tell: function (one, place) { return [{ text: one.name, kind: "name" }, { name: "training step", value: write(place[0]) }, { name: data.training.label, value: write(place[1]) }]; }
  });
  var gammas = document.getElementById("gammas"), gammaCharts = [];
  if (gammas) {
    data.gamma.axes.forEach(function (axis, index) {
      var holder = html("div", { "class": "chart", id: "gamma-" + index, "data-chart": "gamma" });
      gammas.appendChild(holder);
      var column = 1 + data.gamma.columns.indexOf(axis);
      var series = data.gamma.curves.map(function (curve) {
        return {
          n: curve.n, kind: (curve.front ? "front" : "other") + (curve.policy.indexOf("fixed") === 0 ? "" : " dashed"), policy: curve.policy,
          at: curve.at.filter(function (row) { return row[column] !== null; }).map(function (row) { return [row[0], row[column]]; })
        };
      }).sort(function (a, b) { return (a.kind.indexOf("front") === 0) - (b.kind.indexOf("front") === 0); });
      var chart = addLines("gamma-" + index, {
        x: "γ: attention asked for (share of windows)", y: axes[axis].label, dots: true, series: series, logY: axes[axis].quality ? false : undefined,
        tell: function (one, place) {
          var network = networks[one.n];
          return [{ text: network.label, kind: "name" }, { text: (network.trial === null ? "" : "trial " + network.trial + " · ") + one.policy + " γ=" + place[0], kind: "soft" }, { name: axes[axis].label, value: writeValue(axes[axis], place[1]) }];
        }
      });
      gammaCharts.push(chart);
    });
  }

  // ---- parallel coordinates ----------------------------------------------------------------------------------------
  var parallel = document.getElementById("parallel"), brushes = {}, wires = [], columns = [];
  function value(point, column) { return column.axis !== undefined ? point.v[column.axis] : point.d ? point.d[column.dimension] : null; }
  function drawParallel() {
    if (!parallel) return;
    columns = data.dimensions.map(function (dimension, index) { return { dimension: index, name: { "routing.gamma": "γ", "routing.policy": "routing policy" }[dimension.name] || dimension.name.replace(/^model\./, "").replace(/_/g, " "), choices: dimension.choices }; })
      .concat(axes.map(function (axis, index) { return { axis: index, name: axis.label, choices: null, objective: axis.objective }; })
        .filter(function (column) { return column.objective; }));
    parallel.style.minWidth = Math.max(0, columns.length * 86) + "px";
    var box = frame(parallel, "parallel coordinates: a line for each point, an axis for each dimension and objective");
    box.left = 46; box.right = box.width - 46; box.top = 62; box.bottom = box.height - 18;
    var shown = data.lines;
    columns.forEach(function (column, place) {
      column.x = box.left + (box.right - box.left) * (columns.length === 1 ? 0.5 : place / (columns.length - 1));
      var values = shown.map(function (index) { return value(points[index], column); }).filter(function (one) { return one !== null && one !== undefined; });
      if (column.choices) {
        var count = column.choices.length;
        column.map = function (one) { return count === 1 ? (box.top + box.bottom) / 2 : box.bottom - one / (count - 1) * (box.bottom - box.top); };
        column.ticks = column.choices.map(function (_, index) { return index; });
        column.write = function (one) { return column.choices[one]; };
      } else {
        var scale = makeScale(values, box.bottom, box.top, { margin: 0, ticks: 4, log: column.axis !== undefined && axes[column.axis].quality ? false : undefined });
        var distinct = values.filter(function (one, at) { return values.indexOf(one) === at; });
        column.map = scale.map; column.write = writeTick;
        column.ticks = column.axis === undefined && distinct.length <= 7 ? distinct.sort(function (a, b) { return a - b; }) : scale.ticks;
      }
    });
    var lines = svg("g", { "class": "wires" });
    wires = shown.map(function (index) {
      var path = "", gap = true;
      columns.forEach(function (column) {
        var one = value(points[index], column);
        if (one === null || one === undefined) { gap = true; return; }
        path += (gap ? "M" : "L") + fixed(column.x) + " " + fixed(column.map(one));
        gap = false;
      });
      var node = svg("path", { d: path, "class": "wire " + kinds[points[index].k] });
      lines.appendChild(node);
      return { node: node, index: index };
    });
    box.node.appendChild(lines);
    columns.forEach(function (column, place) {
      var group = svg("g", { "class": "column" });
      group.appendChild(svg("line", { x1: fixed(column.x), x2: fixed(column.x), y1: box.top, y2: box.bottom, "class": "base" }));
      thin(column.ticks, column.map, 15).forEach(function (tick) {
        var last = place === columns.length - 1;
        group.appendChild(svg("text", { x: fixed(column.x + (last ? -6 : 6)), y: fixed(column.map(tick) + 4), "class": "tick halo" + (last ? " end" : ""), text: column.write(tick) }));
      });
      wrap(column.name, 15).forEach(function (line, at, all) {
        group.appendChild(svg("text", { x: fixed(column.x), y: box.top - 12 - 13 * (all.length - 1 - at), "class": "title small middle", "data-axis": "column", text: line }));
      });
      var band = svg("rect", { x: fixed(column.x - 7), width: 14, y: 0, height: 0, "class": "brush" });
      group.appendChild(band);
      var handle = svg("rect", { x: fixed(column.x - 14), width: 28, y: box.top - 6, height: box.bottom - box.top + 12, "class": "handle" });
      group.appendChild(handle);
      var from = null;
      var height = function (event) { return Math.max(box.top, Math.min(box.bottom, event.clientY - box.node.getBoundingClientRect().top)); };
      handle.addEventListener("pointerdown", function (event) { from = height(event); handle.setPointerCapture(event.pointerId); event.preventDefault(); });
      handle.addEventListener("pointermove", function (event) {
        if (from === null) return;
        var to = height(event);
        brushes[place] = [Math.min(from, to), Math.max(from, to)];
        band.setAttribute("y", brushes[place][0]); band.setAttribute("height", brushes[place][1] - brushes[place][0]);
        filterWires();
      });
      handle.addEventListener("pointerup", function () {
        if (brushes[place] && brushes[place][1] - brushes[place][0] < 4) { delete brushes[place]; band.setAttribute("height", 0); filterWires(); }
        from = null;
      });
      box.node.appendChild(group);
    });
    parallel.dataset.drawn = wires.length;
    box.node.addEventListener("pointermove", function (event) {
      if (event.buttons) return;
      var bounds = box.node.getBoundingClientRect(), x = event.clientX - bounds.left, y = event.clientY - bounds.top, best = null, least = 9;
      wires.forEach(function (wire) {
        if (wire.hidden) return;
        for (var place = 0; place + 1 < columns.length; place++) {
          if (x < columns[place].x || x > columns[place + 1].x) continue;
          var a = value(points[wire.index], columns[place]), b = value(points[wire.index], columns[place + 1]);
          if (a === null || b === null || a === undefined || b === undefined) continue;
          var share = (x - columns[place].x) / (columns[place + 1].x - columns[place].x);
          var distance = Math.abs(columns[place].map(a) * (1 - share) + columns[place + 1].map(b) * share - y);
          if (distance < least) { least = distance; best = wire.index; }
        }
      });
      hover(best, event.clientX, event.clientY);
    });
    box.node.addEventListener("pointerleave", function () { hover(null); });
    box.node.addEventListener("click", function () { if (hovered !== null) pin(hovered); });
    filterWires();
  }
  function wrap(text, most) {
    var lines = [], line = "";
    text.split(/(?<=[ .,])/).forEach(function (word) {
      if (line && (line + word).trim().length > most) { lines.push(line.trim()); line = ""; }
      line += word;
    });
    lines.push(line.trim());
    return lines.slice(0, 4);
  }
  function filterWires() {
    var left = 0;
    wires.forEach(function (wire) {
      wire.hidden = Object.keys(brushes).some(function (place) {
        var one = value(points[wire.index], columns[place]);
        if (one === null || one === undefined) return true;
        var at = columns[place].map(one);
        return at < brushes[place][0] - 0.5 || at > brushes[place][1] + 0.5;
      });
      wire.node.classList.toggle("away", wire.hidden);
      left += !wire.hidden;
    });
    var told = document.getElementById("brushed");
    if (told) told.textContent = left === wires.length ? "" : left + " of " + wires.length + " lines are inside what is marked";
    var clear = document.getElementById("unbrush");
    if (clear) clear.hidden = !Object.keys(brushes).length;
  }
  var unbrush = document.getElementById("unbrush");
  if (unbrush) unbrush.addEventListener("click", function () { brushes = {}; drawParallel(); });
  function highlight(index) {
    var network = index === null ? null : points[index].n;
    wires.forEach(function (wire) {
      var same = index !== null && wire.index === index;
      wire.node.classList.toggle("near", same);
      if (same) wire.node.parentNode.appendChild(wire.node);
    });
    gammaCharts.forEach(function (chart) {
      if (!chart.nodes) return;
      chart.nodes.forEach(function (node, at) { node.classList.toggle("picked", network !== null && chart.options.series[at].n === network); });
    });
  }

  // ---- crops: one view for all tiles of an image -------------------------------------------------------------------
  document.querySelectorAll(".comparison").forEach(function (comparison) {
    var first = { zoom: +comparison.dataset.zoom, x: +comparison.dataset.x, y: +comparison.dataset.y };
    var view = { zoom: first.zoom, x: first.x, y: first.y };
    function show() {
      view.zoom = Math.max(1, Math.min(24, view.zoom));
      var span = 1 / view.zoom;
      view.x = Math.max(0, Math.min(1 - span, view.x)); view.y = Math.max(0, Math.min(1 - span, view.y));
      comparison.style.setProperty("--zoom", view.zoom.toFixed(4));
      comparison.style.setProperty("--x", view.x.toFixed(5));
      comparison.style.setProperty("--y", view.y.toFixed(5));
      var box = comparison.querySelector(".seen");
      if (box) {
        var side = +box.dataset.side, left = +box.dataset.left, top = +box.dataset.top, wide = +box.dataset.wide, high = +box.dataset.high;
        box.style.left = 100 * (left + view.x * side) / wide + "%"; box.style.top = 100 * (top + view.y * side) / high + "%";
        box.style.width = 100 * side * span / wide + "%"; box.style.height = 100 * side * span / high + "%";
      }
      comparison.querySelector(".zoomed").textContent = "×" + view.zoom.toFixed(1);
    }
    function zoom(factor, x, y) { // x, y: where in the view, 0 to 1
      var atX = view.x + x / view.zoom, atY = view.y + y / view.zoom, before = view.zoom;
      view.zoom = Math.max(1, Math.min(24, view.zoom * factor));
      if (view.zoom !== before) { view.x = atX - x / view.zoom; view.y = atY - y / view.zoom; }
      show();
    }
    function pan(x, y) { view.x += x / view.zoom; view.y += y / view.zoom; show(); }
    comparison.querySelectorAll(".view").forEach(function (tile) {
      tile.addEventListener("wheel", function (event) {
        event.preventDefault();
        var bounds = tile.getBoundingClientRect();
        zoom(Math.pow(1.0016, -event.deltaY), (event.clientX - bounds.left) / bounds.width, (event.clientY - bounds.top) / bounds.height);
      }, { passive: false });
      var from = null;
      tile.addEventListener("pointerdown", function (event) { from = [event.clientX, event.clientY]; tile.setPointerCapture(event.pointerId); });
      tile.addEventListener("pointermove", function (event) {
        if (!from) return;
        var bounds = tile.getBoundingClientRect();
        pan((from[0] - event.clientX) / bounds.width, (from[1] - event.clientY) / bounds.height);
        from = [event.clientX, event.clientY];
      });
      tile.addEventListener("pointerup", function () { from = null; });
      tile.addEventListener("keydown", function (event) {
        var moves = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] };
        if (moves[event.key]) { pan(moves[event.key][0], moves[event.key][1]); event.preventDefault(); }
        if (event.key === "+" || event.key === "=") zoom(1.4, 0.5, 0.5);
        if (event.key === "-") zoom(1 / 1.4, 0.5, 0.5);
        if (event.key === "0") { view = { zoom: first.zoom, x: first.x, y: first.y }; show(); }
      });
    });
    comparison.querySelector(".controls").hidden = false;
    comparison.querySelectorAll("[data-zoom-by]").forEach(function (button) {
      button.addEventListener("click", function () { zoom(+button.dataset.zoomBy, 0.5, 0.5); });
    });
    comparison.querySelector("[data-zoom-reset]").addEventListener("click", function () { view = { zoom: first.zoom, x: first.x, y: first.y }; show(); });
    show();
  });

  // ---- routing maps ------------------------------------------------------------------------------------------------
  (data.maps || []).forEach(function (entry, index) {
    var holder = document.getElementById("map-" + index);
    if (!holder) return;
    var gamma = holder.querySelector(".at-gamma"), block = holder.querySelector(".at-block"), told = holder.querySelector(".told");
    var drawn = holder.querySelector("svg.windows");
    entry.at.forEach(function (one, place) { gamma.appendChild(html("option", { value: place, text: one.routing })); });
    block.appendChild(html("option", { value: "mean", text: "all blocks (share)" }));
    entry.at[0].masks.forEach(function (_, place) { block.appendChild(html("option", { value: place, text: "block " + (place + 1) })); });
    gamma.value = entry.first;
    function draw() {
      var one = entry.at[+gamma.value], masks = block.value === "mean" ? one.masks : [one.masks[+block.value]];
      drawn.textContent = "";
      var total = 0, rows = entry.size[0], across = entry.size[1];
      for (var row = 0; row < rows; row++) for (var column = 0; column < across; column++) {
        var hits = masks.reduce(function (sum, mask) { return sum + (mask.charAt(row * across + column) === "1"); }, 0);
        total += hits;
        var x = column * entry.window, y = row * entry.window;
        var wide = Math.min(entry.window, entry.lr[1] - x), high = Math.min(entry.window, entry.lr[0] - y);
        var cell = svg("rect", { x: x, y: y, width: wide, height: high, "class": hits ? "window hit" : "window" });
        cell.style.fillOpacity = hits ? 0.15 + 0.55 * hits / masks.length : 0;
        cell.appendChild(svg("title", { text: "window " + (row + 1) + ", " + (column + 1) + ": attention in " + hits + " of " + masks.length + (masks.length === 1 ? " block" : " blocks") }));
        drawn.appendChild(cell);
      }
      var share = total / (masks.length * rows * across);
      told.textContent = one.routing + ": attention in " + (100 * share).toFixed(1) + " % of windows" + (block.value === "mean" ? ", mean over " + masks.length + " blocks" : " of block " + (+block.value + 1));
    }
    gamma.addEventListener("change", draw); block.addEventListener("change", draw);
    draw();
    holder.querySelector(".controls").hidden = false;
  });

  // ---- draw, and again when the width changes ----------------------------------------------------------------------
  function drawAll() { drawFronts(); curves.forEach(function (chart) { chart.draw(); }); drawParallel(); }
  drawAll();
  document.documentElement.dataset.drawn = (performance.now() - started).toFixed(0);
  var width = document.documentElement.clientWidth, waiting = null;
  window.addEventListener("resize", function () {
    if (document.documentElement.clientWidth === width) return;
    width = document.documentElement.clientWidth;
    clearTimeout(waiting);
    waiting = setTimeout(drawAll, 120);
  });
  document.addEventListener("keydown", function (event) { if (event.key === "Escape") { hideTip(); if (pinned !== null) unpin(); } });
})();
