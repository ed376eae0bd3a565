// Operators and runner in one compilation: torch's headers cost more than what is in the two.
#include "ops.cpp"
#include "experts.cpp"
#include "runner.cpp"
