// How many cells are in an image: count_cells BUNDLE IMAGE
#include <cellvision/image_io.hpp>
#include <cellvision/predictor.hpp>

#include <exception>
#include <iostream>

int main(int count, char** arguments) {
    if (count != 3) {
        return 2;
    }
    try {
        const cellvision::Predictor predict(arguments[1]);
        const cellvision::Cells cells = predict(cellvision::read_image(arguments[2]));
        std::cout << cells.size() << " cells\n";
    } catch (const std::exception& error) {
        std::cerr << error.what() << '\n';
        return 2;
    }
}
