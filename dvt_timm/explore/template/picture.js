// Saves what is seen as a PNG: the view on the left with its captions, similarities on the right.

const [WIDTH, GAP, LINE] = [1600, 24, 25];
const HALF = (WIDTH - 3 * GAP) / 2;
const QUARTER = (HALF - GAP) / 2;

const heightAt = (canvas, width) => (canvas.height * width) / canvas.width;
const tilesOf = (place) => ["raw", "denoised"].map((row) => element(`${place}-${row}`));

function captionLines() {
  const [left, right, caption] = MODES[state.mode];
  const ends = [element("scale-low"), element("scale-high")].map((end) => end.textContent);
  return [
    `Left: ${left}, right: ${right}.`,
    caption,
    ...(element("scale").hidden ? [] : [`Dark: ${ends[0]}, bright: ${ends[1]}.`]),
    "Similarity: cosine of patches, map's mean taken off; dark: 0 or less, bright: 1.",
    "",
    ...about.facts.map(([title, text]) => `${title}: ${text}`),
  ];
}

function drawPicture() {
  const places = last > 0 ? ["same", "other"] : ["same"];
  const view = element("main");
  const top = GAP + 1.5 * LINE;
  const lines = captionLines();
  const left = heightAt(view, HALF) + (lines.length + 1) * LINE;
  const right = places.reduce((sum, place) => sum + heightAt(tilesOf(place)[0], QUARTER) + 2 * LINE, 0);
  const canvas = document.createElement("canvas");
  canvas.width = WIDTH;
  canvas.height = top + Math.max(left, right) + GAP;

  const style = getComputedStyle(document.body);
  const context = canvas.getContext("2d");
  context.fillStyle = style.backgroundColor;
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.fillStyle = style.color;
  const write = (text, x, y, room, weight = "") => {
    context.font = `${weight} 16px ${style.fontFamily}`;
    context.fillText(text, x, y, room);
  };

  write(photoAt(state.photo).name, GAP, GAP + LINE, HALF, "bold");
  context.drawImage(view, GAP, top, HALF, heightAt(view, HALF));
  context.fillRect(GAP + state.divider * HALF - 1, top, 2, heightAt(view, HALF));
  lines.forEach((text, i) => write(text, GAP, top + heightAt(view, HALF) + (i + 1) * LINE, HALF));

  const x = 2 * GAP + HALF;
  let y = top;
  write(element("query").textContent.split(";")[0], x, GAP + LINE, HALF, "bold");
  for (const place of places) {
    const height = heightAt(tilesOf(place)[0], QUARTER);
    tilesOf(place).forEach((tile, i) => {
      context.drawImage(tile, x + i * (QUARTER + GAP), y, QUARTER, height);
      write(tile.nextElementSibling.textContent, x + i * (QUARTER + GAP), y + height + LINE, QUARTER);
    });
    y += height + 2 * LINE;
  }
  return canvas;
}

function save() {
  const name = photoAt(state.photo).name.replace(/\.\w+$/, "").replace(/[^\p{L}\p{N}._-]+/gu, "-");
  drawPicture().toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${name}-${state.mode}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  });
}
