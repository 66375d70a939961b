// Marks what other libraries may call: everything else is hidden.
#pragma once

#define LFFN_EXPORT __attribute__((visibility("default")))
