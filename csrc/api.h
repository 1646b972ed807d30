// What the shared library shows to the bindings; everything else is hidden.
#pragma once

#define CLEBSCH_API __attribute__((visibility("default")))
