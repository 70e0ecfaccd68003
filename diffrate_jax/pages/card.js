"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const { side, blocks } = data;
const last = blocks.length; // Position 0 of the slider is the input.
const by = (id) => document.getElementById(id);
const slider = by("slider"), tip = by("tip");
const NEVER = -1;
let at = 0, timer = 0;
let pointed = null; // The picture that the tip is about.

function make(name, attributes = {}, ...children) {
  const svg = ["svg", "path", "image", "g", "rect"].includes(name);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", name)
    : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

const cell = (p) => `M${p % side} ${Math.floor(p / side)}h1v1h-1z`;
const percent = (share) => `${(100 * share).toPrecision(share < 0.1 ? 2 : 3)} %`;

// What a patch of a picture is at the slider's position.
function stateOf(picture, p) {
  if (at === 0) return { kind: "input" };
  const view = picture.views[at - 1], number = blocks[at - 1].block;
  const pruned = picture.pruned[p], importance = view.importance[p];
  if (pruned !== NEVER && pruned <= number) {
    const there = blocks.findIndex((each) => each.block === pruned);
    const then = there < 0 ? null : picture.views[there].importance[p];
    return { kind: pruned === number ? "now" : "before", pruned, importance: then };
  }
  const group = view.groups[view.owner[p]];
  return group ? { kind: "merged", importance, group } : { kind: "single", importance };
}

function sentences(picture, p) {
  const state = stateOf(picture, p), number = at && blocks[at - 1].block;
  const place = `Row ${Math.floor(p / side)}, column ${p % side}`;
  const share = (verb) => (state.importance === null ? ""
    : `It came in with ${percent(state.importance)} of ${data.attention}${verb}.`);
  switch (state.kind) {
    case "input": return ["A token of one patch", `${place}.`];
    case "single": return ["A token of one patch", share(""), `${place}.`];
    case "merged": return [
      `A token of ${state.group.patches} patches, size ${state.group.size}`,
      share(""), `${place}.`];
    default: return [
      state.pruned === number ? "Pruned in this block" : `Pruned in block ${state.pruned}`,
      share(state.pruned === number ? "" : " then"), `${place}.`];
  }
}

// Dark violet to yellow, for attention: even steps to the eye.
const RAMP = [[32, 12, 74], [112, 25, 110], [187, 55, 84], [240, 112, 32], [249, 201, 50]];
function heat(value) {
  const place = Math.min(Math.max(value, 0), 1) * (RAMP.length - 1);
  const low = Math.min(Math.floor(place), RAMP.length - 2), rest = place - low;
  const mix = RAMP[low].map((from, i) => Math.round(from + rest * (RAMP[low + 1][i] - from)));
  return `rgb(${mix})`;
}

class Card {
  constructor(picture) {
    this.picture = picture;
    this.cursor = null;
    this.stale = true;
    this.seen = false;
    const image = make("image", { href: picture.image, width: side, height: side,
      preserveAspectRatio: "none" });
    if (data.pixels < 128) image.style.imageRendering = "pixelated";
    this.layer = make("g");
    this.mark = make("g");
    this.svg = make("svg", { viewBox: `0 0 ${side} ${side}`, tabindex: 0, role: "img" },
      image, this.layer, this.mark);
    this.tally = make("p", { class: "tally" });
    const about = make("div", { class: "about" }, make("h2", {}, picture.name), this.tally);
    if (picture.dense.length) about.append(this.guesses());
    this.node = make("article", {}, this.svg, about);
    this.listen();
  }

  guesses() {
    const column = (title, guesses) => make("div", {}, make("h3", {}, title),
      ...guesses.map(({ label, probability }, rank) => {
        const differs = rank === 0 && label !== this.picture.dense[0].label;
        const name = make("span", { title: label }, label);
        if (differs) name.className = "differs";
        const row = make("p", {}, name, make("span", {}, percent(probability)));
        row.style.setProperty("--share", `${100 * probability}%`);
        return row;
      }));
    const both = make("div", { class: "guesses" },
      column("Dense", this.picture.dense));
    if (this.picture.compressed.length) {
      both.append(column("Compressed", this.picture.compressed));
    }
    return both;
  }

  listen() {
    const patchAt = (event) => {
      const box = this.svg.getBoundingClientRect();
      const to = (offset, length) =>
        Math.min(side - 1, Math.max(0, Math.floor((offset / length) * side)));
      return to(event.clientX - box.left, box.width)
        + side * to(event.clientY - box.top, box.height);
    };
    this.svg.addEventListener("pointermove", (event) => this.point(patchAt(event)));
    this.svg.addEventListener("pointerdown", (event) => {
      if (event.pointerType === "mouse") event.preventDefault(); // Focus is for keys.
      this.point(patchAt(event));
    });
    this.svg.addEventListener("pointerleave", (event) => {
      // A finger leaves with every tap; what it tapped stays told of.
      if (event.pointerType !== "touch") this.point(null);
    });
    this.svg.addEventListener("blur", () => this.point(null));
    this.svg.addEventListener("keydown", (event) => this.walk(event));
  }

  walk(event) {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1],
      ArrowDown: [0, 1] }[event.key];
    if (event.key === "Escape") this.svg.blur();
    if (!step || event.altKey || event.ctrlKey || event.metaKey) return;
    event.preventDefault();
    event.stopPropagation();
    const from = this.cursor ?? Math.floor(side / 2) * (side + 1);
    const [x, y] = [from % side, Math.floor(from / side)];
    const within = (value) => Math.min(side - 1, Math.max(0, value));
    this.point(this.cursor === null ? from
      : within(x + step[0]) + side * within(y + step[1]));
  }

  point(patch) {
    if (pointed !== this) {
      if (patch === null) return;
      pointed?.point(null);
    }
    pointed = patch === null ? null : this;
    this.cursor = patch;
    this.mark.replaceChildren();
    tip.hidden = patch === null;
    if (patch === null) return;
    const state = stateOf(this.picture, patch);
    const path = state.kind === "merged" ? state.group.path : cell(patch);
    this.mark.append(make("path", { d: path, class: "halo" }),
      make("path", { d: path, class: "ring" }));
    const [head, ...rest] = sentences(this.picture, patch);
    tip.replaceChildren(make("b", {}, head), rest.filter(Boolean).join(" "));
    this.placeTip(patch);
  }

  placeTip(patch) {
    const box = this.svg.getBoundingClientRect(), unit = box.width / side;
    const x = box.left + (patch % side + 1) * unit + 10;
    const y = box.top + (Math.floor(patch / side) + 1) * unit + 10;
    const { width, height } = tip.getBoundingClientRect();
    const left = x + width + 8 > innerWidth ? x - unit - width - 20 : x;
    const top = y + height + 8 > innerHeight ? y - unit - height - 20 : y;
    tip.style.left = `${Math.max(8, left)}px`;
    tip.style.top = `${Math.max(8, top)}px`;
  }

  draw() {
    if (!this.seen || !this.stale) return;
    this.stale = false;
    const parts = { single: 0, merged: 0, now: [], before: [] };
    for (let p = 0; p < side * side; p++) {
      const { kind } = stateOf(this.picture, p);
      if (kind === "now" || kind === "before") parts[kind].push(p);
      else if (kind !== "merged") parts.single++;
    }
    const groups = at ? this.picture.views[at - 1].groups : [];
    parts.merged = side * side - parts.single - parts.now.length - parts.before.length;
    const gone = [...parts.now, ...parts.before].map(cell).join("");
    this.layer.replaceChildren(
      ...this.heat(),
      make("path", { d: gone, class: "gone", "data-count": parts.before.length }),
      make("path", { d: parts.now.map(cell).join(""), class: "now-gone",
        "data-count": parts.now.length }),
      ...groups.map((group) => make("path", { d: group.path, class: "merged-group",
        fill: group.fill, stroke: group.line, "stroke-width": data.line })));
    this.tell(parts, groups);
    if (this.cursor !== null) this.point(this.cursor);
  }

  heat() {
    if (at === 0 || mode() !== "attention") return [];
    const { importance } = this.picture.views[at - 1];
    const most = Math.max(...importance.filter((share) => share !== null));
    return importance.flatMap((share, p) => (share === null ? []
      : [make("path", { d: cell(p), class: "heat", fill: heat(Math.sqrt(share / most)) })]));
  }

  tell(parts, groups) {
    const said = [`${parts.single} single`];
    if (groups.length) said.push(`${groups.length} merged from ${parts.merged} patches`);
    const pruned = parts.now.length + parts.before.length;
    if (pruned) said.push(`${pruned} pruned`);
    this.tally.textContent = said.join(" · ");
    this.svg.setAttribute("aria-label", `${this.picture.name}: ${said.join(", ")}`);
  }
}
