// The SVG writer of quire bench.
#include "cli/bench/svg.h"

#include <algorithm>

#include "cli/table.h"

namespace quire::cli {
namespace {

constexpr double kLabelWidth = 260;
constexpr double kPlotWidth = 420;
constexpr double kNoteWidth = 220;
constexpr double kTop = 106;
constexpr double kRowHeight = 24;
constexpr double kBarHeight = 15;
constexpr const char* kComputeColour = "#4477aa";
// A white edge keeps the grid lines out of the words.
constexpr const char* kNoteStyle = "fill=\"#444444\" paint-order=\"stroke\" stroke=\"#ffffff\" stroke-width=\"4\"";
constexpr const char* kMemoryColour = "#228833";

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '&':
        out += "&amp;";
        break;
      default:
        out += c;
    }
  }
  return out;
}

std::string number(double value) { return fixed(value, 1); }

struct Text {
  double x = 0;
  double y = 0;
  const char* style = "";  // more attributes
};

std::string text_at(const Text& place, const std::string& content) {
  return "<text x=\"" + number(place.x) + "\" y=\"" + number(place.y) + "\" " + place.style + ">" + escape(content) +
         "</text>\n";
}

std::string rectangle(double x, double y, double width, const char* colour) {
  return "<rect x=\"" + number(x) + "\" y=\"" + number(y) + "\" width=\"" + number(width) + "\" height=\"" +
         number(kBarHeight) + "\" rx=\"2\" fill=\"" + colour + "\"/>\n";
}

std::string grid(double bottom) {
  std::string out;
  for (int percent = 0; percent <= 100; percent += 25) {
    const double x = kLabelWidth + kPlotWidth * percent / 100.0;
    out += "<line x1=\"" + number(x) + "\" y1=\"" + number(kTop - 6) + "\" x2=\"" + number(x) + "\" y2=\"" +
           number(bottom) + "\" stroke=\"" + (percent == 100 ? "#999999" : "#dddddd") + "\"/>\n";
    out += text_at({x, kTop - 12, "text-anchor=\"middle\" fill=\"#666666\""}, std::to_string(percent) + " %");
  }
  return out;
}

std::string legend(double y) {
  return rectangle(kLabelWidth, y - kBarHeight + 3, 24, kComputeColour) +
         text_at({kLabelWidth + 30, y, "fill=\"#444444\""}, "bound by arithmetic") +
         rectangle(kLabelWidth + 170, y - kBarHeight + 3, 24, kMemoryColour) +
         text_at({kLabelWidth + 200, y, "fill=\"#444444\""}, "bound by memory");
}

}  // namespace

std::string svg_bar_chart(const BarChart& chart) {
  const double bottom = kTop + kRowHeight * static_cast<double>(chart.bars.size());
  const double height = bottom + 40;
  const double width = kLabelWidth + kPlotWidth + kNoteWidth;
  std::string out = "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"" + number(width) + "\" height=\"" +
                    number(height) + "\" viewBox=\"0 0 " + number(width) + " " + number(height) +
                    "\" font-family=\"sans-serif\" font-size=\"12\">\n";
  out += "<rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n";
  out += text_at({16, 26, "font-size=\"16\" font-weight=\"bold\" fill=\"#222222\""}, chart.title);
  out += text_at({16, 46, "fill=\"#555555\""}, chart.subtitle);
  out += text_at({16, 63, "fill=\"#555555\""}, chart.second_line);
  out += grid(bottom);
  double y = kTop;
  for (const Bar& bar : chart.bars) {
    const double length = kPlotWidth * std::clamp(bar.fraction, 0.0, 1.05);
    out += text_at({kLabelWidth - 8, y + 12, "text-anchor=\"end\" fill=\"#222222\""}, bar.label);
    out += rectangle(kLabelWidth, y, length, bar.memory_bound ? kMemoryColour : kComputeColour);
    out += text_at({kLabelWidth + length + 6, y + 12, kNoteStyle}, bar.note);
    y += kRowHeight;
  }
  return out + legend(bottom + 24) + "</svg>\n";
}

}  // namespace quire::cli
