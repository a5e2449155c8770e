// Screen 6: a network before and after slimming.

import { byId } from "./markup.js";

export const title = "Before and after";

export function start() {}
export function resized() {}

export function grid() {
  return null;
}

export function render() {}
