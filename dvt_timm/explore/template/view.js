// Draws the page and listens to it. `state` says what is seen; every change ends in `redraw`.

const KEPT = 12; // photos that stay decoded
const MODES = {
  pca: ["raw", "denoised", "First three principal components of the raw map as red, green and blue."],
  clusters: ["raw", "denoised", "Clusters of directions; those of both maps that share most patches have one color."],
  norm: ["raw", "denoised", "Norm of each patch, as a multiple of the median of its map."],
  taken: ["removed: PCA", "removed: norm", "Raw minus denoised: its own components, and its norm as a share of the median raw norm."],
};

const element = (id) => document.getElementById(id);
const readJson = (id) => JSON.parse(element(id).textContent);
const about = readJson("about");
const last = about.photos.length - 1;
const state = {
  photo: 0,
  second: Math.min(1, last),
  query: null, // {photo, index} of the patch that is compared
  held: false, // whether the patch stays where it is when the pointer moves
  mode: "pca",
  divider: 0.5, // share of the width that shows raw
  opacity: 0.85,
  grid: false,
};

// ---- photos ----

const decoded = new Map(); // the last ones that were looked at, the oldest first

function photoAt(index) {
  const photo = decoded.get(index) || new Photo(readJson(`photo-${index}`), about);
  decoded.delete(index);
  decoded.set(index, photo);
  if (decoded.size > KEPT) decoded.delete(decoded.keys().next().value);
  return photo;
}

function show(index) {
  const photo = photoAt(index);
  state.photo = index;
  if (state.second === index) state.second = index < last ? index + 1 : Math.max(0, index - 1);
  state.query = { photo: index, index: photo.salient };
  state.held = false;
  for (const button of element("strip").children) {
    button.setAttribute("aria-current", String(Number(button.dataset.index) === index));
  }
  element("strip").children[index].scrollIntoView({ block: "nearest", inline: "nearest" });
  redraw();
  Promise.all([photo.ready, photoAt(state.second).ready]).then(redraw);
}

function showSecond(index) {
  if (state.query.photo === state.second) state.query = { photo: state.photo, index: photoAt(state.photo).salient };
  state.second = index;
  redraw();
  photoAt(index).ready.then(redraw);
}

// ---- drawing ----

let isDue = false;

function redraw() {
  if (isDue) return;
  isDue = true;
  requestAnimationFrame(() => {
    isDue = false;
    drawView();
    drawSimilarities();
  });
}

// Make a canvas as large as a photo, with the photo on it.
function begin(canvas, photo) {
  if (canvas.width !== photo.width || canvas.height !== photo.height) {
    canvas.width = photo.width;
    canvas.height = photo.height;
  }
  const context = canvas.getContext("2d");
  context.imageSmoothingEnabled = false;
  context.globalAlpha = 1;
  context.drawImage(photo.picture, 0, 0, photo.width, photo.height);
  return context;
}

// Lay the colors of patches over the photo, between two places across it.
function overlay(context, photo, colors, from = 0, to = photo.width) {
  context.save();
  context.beginPath();
  context.rect(from, 0, to - from, photo.height);
  context.clip();
  context.globalAlpha = state.opacity;
  context.drawImage(colors, 0, 0, photo.width, photo.height);
  context.restore();
}

function drawGrid(context, photo) {
  context.strokeStyle = "#ffffff66";
  context.lineWidth = 1;
  context.beginPath();
  for (let x = photo.cellWidth; x < photo.width; x += photo.cellWidth) {
    context.moveTo(x + 0.5, 0);
    context.lineTo(x + 0.5, photo.height);
  }
  for (let y = photo.cellHeight; y < photo.height; y += photo.cellHeight) {
    context.moveTo(0, y + 0.5);
    context.lineTo(photo.width, y + 0.5);
  }
  context.stroke();
}

// A white frame in a dark outline around a patch; a circle around what matches it best.
function mark(context, photo, index, isMatch) {
  const [x, y] = [(index % photo.columns) * photo.cellWidth, Math.floor(index / photo.columns) * photo.cellHeight];
  const unit = photo.width / 400; // so that it looks the same whatever the size of the picture
  for (const [width, color] of [[5 * unit, "#000"], [2.5 * unit, "#fff"]]) {
    context.lineWidth = width;
    context.strokeStyle = color;
    context.beginPath();
    if (isMatch) {
      context.arc(x + photo.cellWidth / 2, y + photo.cellHeight / 2, photo.cellWidth * 0.5 + 4 * unit, 0, 2 * Math.PI);
    } else {
      context.rect(x - 3 * unit, y - 3 * unit, photo.cellWidth + 6 * unit, photo.cellHeight + 6 * unit);
    }
    context.stroke();
  }
}

function drawView() {
  const photo = photoAt(state.photo);
  const context = begin(element("main"), photo);
  const [left, right] = photo.layers[state.mode];
  const middle = state.divider * photo.width;
  overlay(context, photo, left, 0, middle);
  overlay(context, photo, right, middle, photo.width);
  if (state.grid) drawGrid(context, photo);
  if (state.query.photo === state.photo) mark(context, photo, state.query.index, false);
  describeView(photo);
}

function describeView(photo) {
  const [left, right, caption] = MODES[state.mode];
  const share = `${(100 * state.divider).toFixed(2)}%`;
  element("stage").style.maxWidth = `calc(75vh * ${photo.width / photo.height})`;
  element("handle").style.left = share;
  element("divider").value = 100 * state.divider;
  element("left-tag").hidden = state.divider < 0.15;
  element("right-tag").hidden = state.divider > 0.85;
  for (const [id, text] of [["left", left], ["right", right]]) {
    element(`${id}-tag`).textContent = element(`${id}-name`).textContent = text;
  }
  const removed = `${Math.round(100 * photo.removed)} % of its variance removed`;
  element("photo-name").textContent = photo.name;
  element("main").ariaLabel = `${photo.name}, ${left} left and ${right} right of the divider; arrow keys move the patch`;
  element("caption").textContent = `${caption} ${photo.rows} x ${photo.columns} patches, ${removed}.`;
  const ends = { norm: photo.ends.norm, taken: photo.ends.taken }[state.mode];
  element("scale").hidden = !ends;
  if (!ends) return;
  const unit = state.mode === "norm" ? " x median" : " of the raw median";
  element("scale-low").textContent = ends[0].toFixed(2) + unit;
  element("scale-high").textContent = ends[1].toFixed(2) + unit;
}

function drawSimilarities() {
  const from = photoAt(state.query.photo);
  const place = `row ${Math.floor(state.query.index / from.columns)}, column ${state.query.index % from.columns}`;
  const hold = state.held ? "held: click it or press Space to let it go" : "click or press Space to hold it";
  element("query").textContent = `Patch at ${place} of ${from.name}; ${hold}.`;
  element("second").value = state.second;
  for (const option of element("second").options) option.disabled = Number(option.value) === state.photo;
  for (const row of ["raw", "denoised"]) {
    drawSimilarity("same", row, state.photo);
    if (last > 0) drawSimilarity("other", row, state.second);
  }
}

function drawSimilarity(place, row, index) {
  const [photo, from] = [photoAt(index), photoAt(state.query.photo)];
  const cosines = photo.maps[row].similarity(from.maps[row], state.query.index);
  const canvas = element(`${place}-${row}`);
  const context = begin(canvas, photo);
  overlay(context, photo, photo.paintCosines(cosines, about.colormap));
  if (state.grid) drawGrid(context, photo);
  const isHome = index === state.query.photo;
  const best = cosines.indexOf(Math.max(...cosines));
  mark(context, photo, isHome ? state.query.index : best, !isHome);
  const similar = cosines.filter((cosine) => cosine > 0.5).length / cosines.length;
  const text = isHome
    ? `${Math.round(100 * similar)} % of patches above 0.5`
    : `best match ${cosines[best].toFixed(2)} at row ${Math.floor(best / photo.columns)}, column ${best % photo.columns}`;
  const caption = canvas.nextElementSibling;
  const title = document.createElement("b");
  title.textContent = row;
  caption.replaceChildren(title, `: ${text}`);
  canvas.setAttribute("aria-label", `${photo.name}, similarity of ${row} features: ${text}`);
}

// ---- pointer ----

function patchUnder(event, canvas, photo) {
  const box = canvas.getBoundingClientRect();
  const column = Math.floor(((event.clientX - box.left) / box.width) * photo.columns);
  const row = Math.floor(((event.clientY - box.top) / box.height) * photo.rows);
  if (column < 0 || row < 0 || column >= photo.columns || row >= photo.rows) return null;
  return row * photo.columns + column;
}

function listen(canvas, photoIndex) {
  const point = (event) => {
    const index = patchUnder(event, canvas, photoAt(photoIndex()));
    if (index !== null) state.query = { photo: photoIndex(), index };
    redraw();
    return index;
  };
  canvas.addEventListener("pointermove", (event) => {
    if (!state.held || event.buttons) point(event);
  });
  canvas.addEventListener("click", (event) => {
    const before = state.query;
    const isSame = point(event) === before.index && photoIndex() === before.photo;
    state.held = !(state.held && isSame);
  });
}

function divideAt(event) {
  const box = element("main").getBoundingClientRect();
  state.divider = Math.min(Math.max((event.clientX - box.left) / box.width, 0), 1);
  redraw();
}

element("handle").addEventListener("pointerdown", (event) => {
  element("handle").setPointerCapture(event.pointerId);
  event.preventDefault();
});
element("handle").addEventListener("pointermove", (event) => {
  if (element("handle").hasPointerCapture(event.pointerId)) divideAt(event);
});

// ---- keyboard ----

function movePatch(down, across) {
  const photo = photoAt(state.query.photo);
  const row = Math.floor(state.query.index / photo.columns) + down;
  const column = (state.query.index % photo.columns) + across;
  const inside = (value, count) => Math.min(Math.max(value, 0), count - 1);
  state.query.index = inside(row, photo.rows) * photo.columns + inside(column, photo.columns);
  state.held = true;
}

function setMode(mode) {
  state.mode = mode;
  document.querySelector(`input[value="${mode}"]`).checked = true;
}

function setOpacity(opacity) {
  state.opacity = opacity;
  element("opacity").value = 100 * opacity;
}

function setGrid(grid) {
  state.grid = grid;
  element("grid").checked = grid;
}

function nextDivider(divider) {
  return divider === 0.5 ? 1 : divider === 1 ? 0 : 0.5;
}

function nextSecond() {
  let index = state.second;
  do index = (index + 1) % about.photos.length; while (index === state.photo);
  return index;
}

const KEYS = {
  " ": () => (state.held = !state.held),
  n: () => show(Math.min(state.photo + 1, last)),
  p: () => show(Math.max(state.photo - 1, 0)),
  m: () => last > 0 && showSecond(nextSecond()),
  d: () => (state.divider = nextDivider(state.divider)),
  o: () => setOpacity(state.opacity > 0 ? 0 : 0.85),
  g: () => setGrid(!state.grid),
  s: () => save(),
  1: () => setMode("pca"),
  2: () => setMode("clusters"),
  3: () => setMode("norm"),
  4: () => setMode("taken"),
};
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const arrow = ARROWS[event.key];
  const key = event.key.toLowerCase();
  if (arrow && !event.target.matches("input, select")) {
    movePatch(...arrow.map((step) => step * (event.shiftKey ? 5 : 1)));
  } else if (Object.hasOwn(KEYS, key) && !event.target.matches("select") && !(key === " " && event.target.matches("input, button, summary"))) {
    KEYS[key]();
  } else {
    return;
  }
  event.preventDefault();
  redraw();
});

// ---- the view as a picture ----

function save() {
  const places = last > 0 ? ["same", "other"] : ["same"];
  const photo = photoAt(state.photo);
  const [gap, line, width] = [24, 26, 1600];
  const half = (width - 3 * gap) / 2;
  const quarter = (half - gap) / 2;
  const style = getComputedStyle(document.body);
  const tall = (canvas, wide) => (canvas.height * wide) / canvas.width;
  const top = gap + 2 * line;
  const right = places.reduce((sum, place) => sum + tall(element(`${place}-raw`), quarter) + 2 * line, 2 * line);
  const canvas = document.createElement("canvas");
  canvas.width = width;
  canvas.height = top + Math.max(tall(element("main"), half) + 3 * line, right) + 3 * line;
  const context = canvas.getContext("2d");
  context.fillStyle = style.backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = style.color;
  const write = (text, x, y, room, weight = "") => {
    context.font = `${weight} 17px ${style.fontFamily}`;
    context.fillText(text, x, y, room);
  };
  const [leftName, rightName, caption] = MODES[state.mode];
  write(photo.name, gap, gap + line, half, "bold");
  context.drawImage(element("main"), gap, top, half, tall(element("main"), half));
  context.fillRect(gap + state.divider * half - 1, top, 2, tall(element("main"), half));
  const below = top + tall(element("main"), half) + line;
  write(`left ${leftName}, right ${rightName}. ${caption}`, gap, below, half);
  if (!element("scale").hidden) write(`dark ${element("scale-low").textContent}, bright ${element("scale-high").textContent}`, gap, below + line, half);
  const x = 2 * gap + half;
  write(element("query").textContent.split(";")[0], x, gap + line, half, "bold");
  let y = top;
  for (const place of places) {
    ["raw", "denoised"].forEach((row, i) => {
      const tile = element(`${place}-${row}`);
      context.drawImage(tile, x + i * (quarter + gap), y, quarter, tall(tile, quarter));
      write(tile.nextElementSibling.textContent, x + i * (quarter + gap), y + tall(tile, quarter) + line, quarter);
    });
    y += tall(element(`${place}-raw`), quarter) + 2 * line;
  }
  write("Cosine of patches, map's mean taken off: dark 0 or less, bright 1.", x, y + line / 2, half);
  const facts = about.facts.map(([title, text]) => `${title}: ${text}`);
  write(facts.slice(0, 3).join("; "), gap, canvas.height - gap - line, width - 2 * gap);
  write(facts.slice(3).join("; "), gap, canvas.height - gap, width - 2 * gap);
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${photo.name.replace(/\.\w+$/, "").replace(/[^\p{L}\p{N}._-]+/gu, "-")}-${state.mode}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}

// ---- the page ----

function build() {
  for (const [title, text] of about.facts) {
    const [group, dt, dd] = ["div", "dt", "dd"].map((tag) => document.createElement(tag));
    dt.textContent = title;
    dd.textContent = text;
    group.append(dt, dd);
    element("facts").append(group);
  }
  about.photos.forEach((photo, index) => {
    const button = document.createElement("button");
    const image = new Image();
    image.src = "data:image/jpeg;base64," + photo.thumbnail;
    image.alt = photo.name;
    button.type = "button";
    button.title = photo.name;
    button.dataset.index = index;
    button.append(image);
    button.addEventListener("click", () => show(index));
    element("strip").append(button);
    element("second").append(new Option(photo.name, index));
  });
  const stops = about.colormap.filter((_, i) => i % 15 === 0).map((color) => `rgb(${color})`);
  for (const bar of document.querySelectorAll(".scale i")) bar.style.background = `linear-gradient(to right, ${stops})`;
  element("second-part").hidden = last === 0;
  element("strip").hidden = last === 0;

  listen(element("main"), () => state.photo);
  for (const row of ["raw", "denoised"]) {
    listen(element(`same-${row}`), () => state.photo);
    listen(element(`other-${row}`), () => state.second);
  }
  const onInput = (id, change) => element(id).addEventListener("input", (event) => {
    change(event.target);
    redraw();
  });
  onInput("divider", (input) => (state.divider = input.value / 100));
  onInput("opacity", (input) => (state.opacity = input.value / 100));
  onInput("grid", (input) => (state.grid = input.checked));
  onInput("second", (input) => showSecond(Number(input.value)));
  for (const radio of document.querySelectorAll("input[name=mode]")) {
    radio.addEventListener("change", () => {
      state.mode = radio.value;
      redraw();
    });
  }
  element("save").addEventListener("click", save);
  show(0);
}

build();
