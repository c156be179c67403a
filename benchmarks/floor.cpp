// The floor as a Python extension, with the thinnest calls there are: no keyword, no conversion, pointers bound once.
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#define NPY_NO_DEPRECATED_API NPY_1_7_API_VERSION
#include <numpy/arrayobject.h>

#include <string_view>

#include "floor.hpp"
#include "floor_samplers.hpp"

using namespace floor_;

namespace {

Floor* make_floor(const char* name, uint64_t capacity, uint64_t lanes) {
  const std::string_view workload = name;
  if (workload == "W1") return new Packed<16, 8, 36, 1>(capacity, lanes, 0.99f);
  if (workload == "W1 n=3") return new Packed<16, 8, 36, 3>(capacity, lanes, 0.99f);
  if (workload == "W2") return new Packed<68, 24, 104, 1>(capacity, lanes, 0.99f);
  if (workload == "W3") return new Frames<7056, 8, 20, 4>(capacity, lanes, 0.99f);
  if (workload == "W1 prioritized") return new Prioritized<16, 8, 36>(capacity, 0.99f);
  if (workload == "W2 sequences") return new Sequences<68, 24, 104>(capacity, 0.99f);
  return nullptr;
}

struct Object {
  PyObject base;
  Floor* floor;
  PyObject* bound;  // the arrays `sample` writes to
};

char* data(PyObject* array) {  // None has none
  return array == Py_None ? nullptr : PyArray_BYTES(reinterpret_cast<PyArrayObject*>(array));
}
Floor& floor_of(PyObject* self) {
  return *reinterpret_cast<Object*>(self)->floor;
}

int init(PyObject* self, PyObject* args, PyObject*) {
  const char* name;
  unsigned long long capacity, lanes;
  if (!PyArg_ParseTuple(args, "sKK", &name, &capacity, &lanes)) return -1;
  reinterpret_cast<Object*>(self)->floor = make_floor(name, capacity, lanes);
  if (reinterpret_cast<Object*>(self)->floor) return 0;
  PyErr_Format(PyExc_ValueError, "no floor for %s", name);
  return -1;
}

void dealloc(PyObject* self) {
  PyTypeObject* type = Py_TYPE(self);
  delete reinterpret_cast<Object*>(self)->floor;
  Py_XDECREF(reinterpret_cast<Object*>(self)->bound);
  type->tp_free(self);
  Py_DECREF(type);
}

// push(obs, action, reward, terminated, next_obs): lane 0. The action is an int or an array.
PyObject* push(PyObject* self, PyObject* const* args, Py_ssize_t) {
  int64_t number = 0;
  const char* action = reinterpret_cast<const char*>(&number);
  if (PyLong_CheckExact(args[1]))
    number = PyLong_AsLongLong(args[1]);
  else
    action = data(args[1]);
  floor_of(self).push(0, data(args[0]), action, static_cast<float>(PyFloat_AS_DOUBLE(args[2])),
                      args[3] == Py_True ? kTerminated : 0, data(args[4]));
  Py_RETURN_NONE;
}

// push_lanes(obs, action, reward, terminated, next_obs, truncated): arrays with an axis of lanes; float64 rewards.
PyObject* push_lanes(PyObject* self, PyObject* const* args, Py_ssize_t) {
  floor_of(self).push_lanes(data(args[0]), data(args[1]), reinterpret_cast<const double*>(data(args[2])),
                            reinterpret_cast<const uint8_t*>(data(args[3])),
                            reinterpret_cast<const uint8_t*>(data(args[5])), data(args[4]));
  Py_RETURN_NONE;
}

// extend(obs, action, reward, terminated, truncated, next_obs): a block of lane 0, in order of time; float32 rewards.
// Also what pushing costs without Python in between.
PyObject* extend(PyObject* self, PyObject* const* args, Py_ssize_t) {
  const auto stride = [&](int i) { return PyArray_STRIDE(reinterpret_cast<PyArrayObject*>(args[i]), 0); };
  const npy_intp count = PyArray_DIM(reinterpret_cast<PyArrayObject*>(args[2]), 0);
  for (npy_intp i = 0; i < count; ++i)
    floor_of(self).push(0, data(args[0]) + i * stride(0), data(args[1]) + i * stride(1),
                        reinterpret_cast<const float*>(data(args[2]))[i],
                        (data(args[3])[i] ? kTerminated : 0) | (data(args[4])[i] ? kTruncated : 0),
                        data(args[5]) + i * stride(5));
  Py_RETURN_NONE;
}

// In the order of Outputs; those that a workload does not have may be missing.
Outputs outputs(PyObject* const* arrays, Py_ssize_t count) {
  const auto further = [&](Py_ssize_t i) { return i < count ? data(arrays[i]) : nullptr; };
  return {data(arrays[0]),
          data(arrays[1]),
          reinterpret_cast<float*>(data(arrays[2])),
          reinterpret_cast<uint8_t*>(data(arrays[3])),
          reinterpret_cast<uint8_t*>(data(arrays[4])),
          data(arrays[5]),
          reinterpret_cast<float*>(data(arrays[6])),
          reinterpret_cast<int64_t*>(data(arrays[7])),
          reinterpret_cast<float*>(further(8)),
          reinterpret_cast<uint8_t*>(further(9)),
          reinterpret_cast<uint8_t*>(further(10))};
}

// bind(obs, action, reward, terminated, truncated, next_obs, discount, ids, ...): where `sample` writes.
PyObject* bind(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  PyObject* arrays = PyTuple_New(count);
  if (!arrays) return nullptr;
  for (Py_ssize_t i = 0; i < count; ++i) {
    Py_INCREF(args[i]);
    PyTuple_SET_ITEM(arrays, i, args[i]);
  }
  Py_XSETREF(reinterpret_cast<Object*>(self)->bound, arrays);
  floor_of(self).bound = outputs(args, count);
  Py_RETURN_NONE;
}

// sample(n): into the bound arrays.
PyObject* sample(PyObject* self, PyObject* count) {
  Floor& floor = floor_of(self);
  floor.sample(PyLong_AsSize_t(count), floor.bound);
  Py_RETURN_NONE;
}

// sample_into(n, obs, action, ...): into these arrays.
PyObject* sample_into(PyObject* self, PyObject* const* args, Py_ssize_t count) {
  floor_of(self).sample(PyLong_AsSize_t(args[0]), outputs(args + 1, count - 1));
  Py_RETURN_NONE;
}

// update(ids, abs_td): int64 and float32, of one length.
PyObject* update(PyObject* self, PyObject* const* args, Py_ssize_t) {
  floor_of(self).update(reinterpret_cast<const int64_t*>(data(args[0])), reinterpret_cast<const float*>(data(args[1])),
                        static_cast<uint64_t>(PyArray_DIM(reinterpret_cast<PyArrayObject*>(args[0]), 0)));
  Py_RETURN_NONE;
}

// sample_often(n, times): the same without Python in between.
PyObject* sample_often(PyObject* self, PyObject* const* args, Py_ssize_t) {
  Floor& floor = floor_of(self);
  const size_t count = PyLong_AsSize_t(args[0]);
  for (size_t times = PyLong_AsSize_t(args[1]); times > 0; --times) floor.sample(count, floor.bound);
  Py_RETURN_NONE;
}

// record_bytes(): of one transition.
PyObject* record_bytes(PyObject* self, PyObject*) {
  return PyLong_FromUnsignedLongLong(floor_of(self).record_bytes());
}

template <typename Function>
constexpr PyMethodDef method(const char* name, Function function, int flags) {
  return {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void (*)()>(function)), flags, nullptr};
}

PyMethodDef methods[] = {method("push", push, METH_FASTCALL),
                         method("push_lanes", push_lanes, METH_FASTCALL),
                         method("extend", extend, METH_FASTCALL),
                         method("bind", bind, METH_FASTCALL),
                         method("sample", sample, METH_O),
                         method("sample_into", sample_into, METH_FASTCALL),
                         method("update", update, METH_FASTCALL),
                         method("sample_often", sample_often, METH_FASTCALL),
                         method("record_bytes", record_bytes, METH_NOARGS),
                         {}};
PyType_Slot slots[] = {{Py_tp_init, reinterpret_cast<void*>(init)},
                       {Py_tp_dealloc, reinterpret_cast<void*>(dealloc)},
                       {Py_tp_methods, methods},
                       {}};
PyType_Spec spec{"_floor.Floor", sizeof(Object), 0, Py_TPFLAGS_DEFAULT, slots};
PyModuleDef definition{PyModuleDef_HEAD_INIT, "_floor", nullptr, -1, nullptr, nullptr, nullptr, nullptr, nullptr};

}  // namespace

PyMODINIT_FUNC PyInit__floor() {
  import_array();
  PyObject* module = PyModule_Create(&definition);
  if (!module || PyModule_AddObject(module, "Floor", PyType_FromSpec(&spec)) != 0) return nullptr;
  return module;
}
