#pragma once

#include "case_file.hpp"

/// Predicts an image and compares every column of the cells with the Python runtime's.
void check_predict(const cases::Case& one);

/// Predicts an image that does not suit its bundle; passes where the error says why.
void check_unfit(const cases::Case& one);
