#pragma once

#include "kernels.h"

namespace trtx {

const Level& current_level();

// Use a level from now on, in all threads. False when the library or the processor does not have it.
bool choose_level(const char* name);

int num_levels();
const Level& level_at(int index);

}  // namespace trtx
