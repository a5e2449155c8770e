// Cost against predicted loss for every budget: the plans that could be chosen, with a slider.

export function startFrontier() {}
