// A bar chart of benchmark rows as SVG.
#pragma once

#include <string>
#include <vector>

namespace quire::cli {

struct Bar {
  std::string label;
  double fraction = 0.0;  // of the roofline, drawn from 0 to 1 (a longer bar is cut at 1.05)
  bool memory_bound = false;
  std::string note;  // behind the bar
};

struct BarChart {
  std::string title;
  std::string subtitle;
  std::string second_line;  // under the subtitle
  std::vector<Bar> bars;
};

// A self-contained SVG document on a white ground.
std::string svg_bar_chart(const BarChart& chart);

}  // namespace quire::cli
